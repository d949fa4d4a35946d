// SPDX-License-Identifier: MIT
#include <immintrin.h>

#include "bench/peak.h"

namespace tsp::bench {

double peak_avx512_vnni(int64_t rounds, float* sink) {
  constexpr int kAccumulators = 20;
  __m512i acc[kAccumulators];
  for (int i = 0; i < kAccumulators; ++i) acc[i] = _mm512_set1_epi32(i);
  const __m512i a = _mm512_set1_epi32(static_cast<int>(*sink)), b = _mm512_set1_epi32(1);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 20
    for (int i = 0; i < kAccumulators; ++i) {  // as assembly: g++ 12 copies each sum otherwise
      asm volatile("vpdpbusd %2, %1, %0" : "+v"(acc[i]) : "v"(a), "v"(b));
    }
  }
  __m512i sum = acc[0];
  for (int i = 1; i < kAccumulators; ++i) sum = _mm512_add_epi32(sum, acc[i]);
  alignas(64) int values[16];
  _mm512_store_si512(values, sum);
  *sink += static_cast<float>(values[0]) * 1e-12f;
  return static_cast<double>(rounds) * kAccumulators * 16 * 8;
}

}  // namespace tsp::bench
