// SPDX-License-Identifier: MIT
// Average pooling along the tokens, zeros beyond the ends counted.
#pragma once

#include <cstdint>

namespace tsp::cpu {

/// For begin <= t < begin + count:
///   out[t * stride] = 1/pool * sum of a[u] + b[u], |u - t| <= pool / 2, 0 <= u < num_columns
void pool_columns(const float* a, const float* b, int32_t num_columns, int32_t pool, int32_t begin,
                  int32_t count, float* out, int64_t stride);

}  // namespace tsp::cpu
