// SPDX-License-Identifier: MIT
#include <bit>
#include <initializer_list>

#include "cuda/attend/cudnn_shape.h"

namespace tsp::cuda {

size_t hash_of(const CudnnShape& s) {
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
  for (const CudnnShape::Strides& strides : {s.q, s.k, s.v, s.out, s.lse}) {
    mix(strides.batch);
    mix(strides.head);
    mix(strides.token);
  }
  return static_cast<size_t>(hash);
}

}  // namespace tsp::cuda
