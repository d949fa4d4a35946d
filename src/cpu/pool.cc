// SPDX-License-Identifier: MIT
#include "cpu/pool.h"

#include <algorithm>

namespace tsp::cpu {
namespace {

constexpr int32_t kStrip = 256;  // tokens pooled together: one pass over the taps stays in L1

}  // namespace

void pool_columns(const float* a, const float* b, int32_t num_columns, int32_t pool, int32_t begin,
                  int32_t count, float* out, int64_t stride) {
  const int32_t reach = pool / 2;
  const float inverse = 1.0f / static_cast<float>(pool);
  for (int32_t first = begin; first < begin + count; first += kStrip) {
    const int32_t length = std::min(kStrip, begin + count - first);
    float sums[kStrip] = {};
    // NOTE: taps ascend for every token, so a token's sum does not depend on its strip.
    const int64_t last_tap = std::min<int64_t>(reach, int64_t{num_columns} - 1 - first);
    for (int64_t tap = std::max<int64_t>(-reach, -int64_t{first} - length + 1); tap <= last_tap;
         ++tap) {
      const int64_t u = first + tap;
      const auto from = static_cast<int32_t>(std::max<int64_t>(0, -u));
      const auto to = static_cast<int32_t>(std::min<int64_t>(length, num_columns - u));
      for (int32_t i = from; i < to; ++i) sums[i] += a[u + i] + b[u + i];
    }
    for (int32_t i = 0; i < length; ++i) out[(first + i) * stride] = sums[i] * inverse;
  }
}

}  // namespace tsp::cpu
