// SPDX-License-Identifier: MIT
#include <immintrin.h>

#include "bench/peak.h"

namespace tsp::bench {

double peak_avx512_bf16(int64_t rounds, float* sink) {
  constexpr int kAccumulators = 20;
  __m512 acc[kAccumulators];
  for (int i = 0; i < kAccumulators; ++i) acc[i] = _mm512_set1_ps(static_cast<float>(i));
  // The inputs are tiny, so that 2 products more a round never overflow the sum.
  const __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(*sink), _mm512_set1_ps(1e-6f));
  const __m512bh b = _mm512_cvtne2ps_pbh(_mm512_set1_ps(1e-6f), _mm512_set1_ps(*sink));
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 20
    for (int i = 0; i < kAccumulators; ++i) acc[i] = _mm512_dpbf16_ps(acc[i], a, b);
  }
  __m512 sum = acc[0];
  for (int i = 1; i < kAccumulators; ++i) sum = _mm512_add_ps(sum, acc[i]);
  alignas(64) float values[16];
  _mm512_store_ps(values, sum);
  *sink += values[0] * 1e-6f;
  return static_cast<double>(rounds) * kAccumulators * 16 * 4;
}

}  // namespace tsp::bench
