// SPDX-License-Identifier: MIT
#include <immintrin.h>

#include "bench/peak.h"

namespace tsp::bench {

double peak_avx512(int64_t rounds, float* sink) {
  constexpr int kAccumulators = 16;
  __m512 acc[kAccumulators];
  for (int i = 0; i < kAccumulators; ++i) acc[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512 a = _mm512_set1_ps(*sink);
  const __m512 b = _mm512_set1_ps(1 - *sink);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int i = 0; i < kAccumulators; ++i) acc[i] = _mm512_fmadd_ps(acc[i], a, b);
  }
  __m512 sum = acc[0];
  for (int i = 1; i < kAccumulators; ++i) sum = _mm512_add_ps(sum, acc[i]);
  alignas(64) float values[16];
  _mm512_store_ps(values, sum);
  *sink += values[0];
  return static_cast<double>(rounds) * kAccumulators * 16 * 2;
}

}  // namespace tsp::bench
