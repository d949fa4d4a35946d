// SPDX-License-Identifier: MIT
#include <algorithm>
#include <bit>

#include "cuda/attend_shape.h"

namespace tsp::cuda {

size_t hash_of(const AttendShape& s) {
  uint64_t hash = 0xcbf29ce484222325u;
  const auto mix = [&hash](int64_t value) {
    hash = (hash ^ static_cast<uint64_t>(value)) * 0x100000001b3u;
    hash ^= hash >> 29;
  };
  for (const int32_t value :
       {s.dtype, s.head_dim, s.batch, s.q_heads, s.kv_heads, s.q_len, s.kv_len, s.with_lse ? 1 : 0,
        s.padded ? 1 : 0, std::bit_cast<int32_t>(s.scale)}) {
    mix(value);
  }
  for (const AttendShape::Strides& strides : {s.q, s.k, s.v, s.out, s.lse}) {
    mix(strides.batch);
    mix(strides.head);
    mix(strides.token);
  }
  return static_cast<size_t>(hash);
}

int32_t units_per_group(int32_t units, int64_t unit_bytes, int64_t budget_bytes) {
  const int64_t fit =
      std::clamp<int64_t>(budget_bytes / std::max<int64_t>(unit_bytes, 1), 1, units);
  const int64_t groups = (units + fit - 1) / fit;
  return static_cast<int32_t>((units + groups - 1) / groups);
}

}  // namespace tsp::cuda
