// SPDX-License-Identifier: MIT
#include <immintrin.h>

#include "bench/peak.h"

namespace tsp::bench {

double peak_avx2(int64_t rounds, float* sink) {
  constexpr int kAccumulators = 12;
  __m256 acc[kAccumulators];
  for (int i = 0; i < kAccumulators; ++i) acc[i] = _mm256_set1_ps(static_cast<float>(i));
  const __m256 a = _mm256_set1_ps(*sink);
  const __m256 b = _mm256_set1_ps(1 - *sink);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kAccumulators; ++i) acc[i] = _mm256_fmadd_ps(acc[i], a, b);
  }
  __m256 sum = acc[0];
  for (int i = 1; i < kAccumulators; ++i) sum = _mm256_add_ps(sum, acc[i]);
  alignas(64) float values[8];
  _mm256_store_ps(values, sum);
  *sink += values[0];
  return static_cast<double>(rounds) * kAccumulators * 8 * 2;
}

}  // namespace tsp::bench
