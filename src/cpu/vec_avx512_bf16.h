// SPDX-License-Identifier: MIT
// Products of pairs of bf16 with f32 sums (VDPBF16PS), on top of vec_avx512.h. Subnormal operands
// count as zero, which is what the instruction does.
#pragma once

#include "cpu/gemm-inl.h"

namespace tsp::cpu {
namespace {

struct Bf16 : VectorProducts<Bf16, uint32_t> {
  using Operand = __m512bh;
  static constexpr int32_t kUnitElems = 2;
  static constexpr int32_t kWeightStride = kBlockKeys / 2 + kLanes;
  static constexpr bool kKeepsScores = true;  // beside their weights, which may exceed 1
  static_assert(kExp2Overflows);
  static TSP_INLINE Operand load_operand(const uint32_t* p) {
    return reinterpret_cast<Operand>(_mm512_loadu_si512(p));
  }
  static TSP_INLINE Operand broadcast(const uint32_t* p) {
    return reinterpret_cast<Operand>(_mm512_set1_epi32(static_cast<int32_t>(*p)));
  }
  static TSP_INLINE Vec mac(Operand a, Operand b, Vec sum) { return _mm512_dpbf16_ps(sum, a, b); }

  /// 16 pairs from elements 0 .. 15 and 16 .. 31 of a row.
  static TSP_INLINE Vec pairs(Vec low, Vec high) {
    return reinterpret_cast<Vec>(_mm512_cvtne2ps_pbh(high, low));
  }
  /// 16 pairs of the same channel of two rows.
  static TSP_INLINE Vec interleave(Vec even, Vec odd) {
    const __m512i low = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(even)));
    const __m512i high = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(odd)));
    return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }

  /// 2^x to 8e-5: finer than the rounding of a weight to bf16, 2e-3.
  static TSP_INLINE Vec exp2(Vec x) {
    const Vec f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    Vec p = set1(7.8024521e-2f);
    p = fma(p, f, set1(2.2606716e-1f));
    p = fma(p, f, set1(6.9583356e-1f));
    p = fma(p, f, set1(9.9992520e-1f));
    return _mm512_scalef_ps(p, x);
  }
  /// Of weights, by their sums: so far from the end of the range that products with any values of a
  /// model and their sums over millions of keys stay in it. False too for NaN.
  static TSP_INLINE bool is_moderate(Vec sums) {
    return _mm512_cmp_ps_mask(sums, set1(0x1p16f), _CMP_NLE_UQ) == 0;
  }
  static TSP_INLINE void store_weights(uint32_t* weights, int32_t j, Vec w) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + j / 2),
                        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(w)));
  }
  static TSP_INLINE void store_weights(uint32_t* weights, int32_t j, Vec w, Vec w2) {
    _mm512_storeu_si512(weights + j / 2, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(w2, w)));
  }
  static TSP_INLINE Vec load_weights(const uint32_t* weights) {
    return load_bf16(reinterpret_cast<const uint16_t*>(weights));
  }
  static TSP_INLINE float weight(const uint32_t* weights, int32_t key) {
    const uint32_t pair = weights[key / 2];
    const uint32_t bits = key % 2 == 0 ? pair << 16 : pair & 0xffff0000u;
    float w;
    __builtin_memcpy(&w, &bits, sizeof w);
    return w;
  }
  static TSP_INLINE Vec value(const uint32_t* row, int32_t key) {
    const __m512i pair = _mm512_loadu_si512(row);
    return _mm512_castsi512_ps(key % 2 == 0 ? _mm512_slli_epi32(pair, 16)
                                            : _mm512_and_si512(pair, _mm512_set1_epi32(-65536)));
  }
};

}  // namespace
}  // namespace tsp::cpu
