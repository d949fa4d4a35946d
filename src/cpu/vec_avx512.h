// SPDX-License-Identifier: MIT
// Vectors of 16 floats: AVX-512 F, BW, DQ and VL. Intrinsics live in the vec_*.h headers only.
// Everything is in an anonymous namespace: a unit never shares code with one of other flags.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#define TSP_INLINE inline __attribute__((always_inline))

namespace tsp::cpu {
namespace {

using Vec = __m512;
constexpr int32_t kLanes = 16;
constexpr int32_t kPanelVecs = 4;  // micro-kernel 6 x 64: 24 sums, 4 of K or V, the rest spare
constexpr int32_t kMicroRows = 6;
constexpr bool kExp2Overflows = true;  // 2^x is infinite for x >= 128; else x must be <= 0

TSP_INLINE Vec zero() { return _mm512_setzero_ps(); }
TSP_INLINE Vec set1(float x) { return _mm512_set1_ps(x); }
TSP_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
TSP_INLINE void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
TSP_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
TSP_INLINE Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
TSP_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
TSP_INLINE Vec vmax(Vec a, Vec b) { return _mm512_max_ps(a, b); }
TSP_INLINE float reduce_max(Vec v) { return _mm512_reduce_max_ps(v); }
TSP_INLINE float reduce_add(Vec v) { return _mm512_reduce_add_ps(v); }
TSP_INLINE float first_lane(Vec v) { return _mm512_cvtss_f32(v); }

/// Lanes outside [begin, end) become `fill`.
TSP_INLINE Vec keep_lanes(Vec v, int32_t begin, int32_t end, float fill) {
  const uint32_t below_end = end >= kLanes ? 0xffffu : (1u << end) - 1u;
  const uint32_t mask = below_end & ~((1u << begin) - 1u);
  return _mm512_mask_mov_ps(_mm512_set1_ps(fill), static_cast<__mmask16>(mask), v);
}

/// 2^x, relative error below 2e-7 for any x <= 0; 2^-inf = 0, NaN stays NaN.
TSP_INLINE Vec exp2(Vec x) {
  const Vec f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // x - floor(x)
  Vec p = set1(1.8775767e-3f);
  p = fma(p, f, set1(8.9893397e-3f));
  p = fma(p, f, set1(5.5826318e-2f));
  p = fma(p, f, set1(2.4015361e-1f));
  p = fma(p, f, set1(6.9315308e-1f));
  p = fma(p, f, set1(9.9999994e-1f));
  return _mm512_scalef_ps(p, x);
}

TSP_INLINE Vec load_f16(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
TSP_INLINE Vec load_bf16(const uint16_t* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
TSP_INLINE void store_f16(uint16_t* p, Vec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
/// Round to nearest even; NaN stays NaN.
TSP_INLINE void store_bf16(uint16_t* p, Vec v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(
      _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, quiet)));
}

/// rows[i] lane j <-> rows[j] lane i.
TSP_INLINE void transpose(Vec (&rows)[kLanes]) {
  __m512 t[kLanes];
  for (int i = 0; i < kLanes; i += 2) {
    t[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
  }
  __m512 u[kLanes];  // u[4 g + c]: channel 4 q + c of keys 4 g .. 4 g + 3 in 128-bit part q
  for (int i = 0; i < kLanes; i += 4) {
    const __m512d a = _mm512_castps_pd(t[i]), b = _mm512_castps_pd(t[i + 1]);
    const __m512d c = _mm512_castps_pd(t[i + 2]), d = _mm512_castps_pd(t[i + 3]);
    u[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    u[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    u[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    u[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
  for (int c = 0; c < 4; ++c) {
    const __m512 lo01 = _mm512_shuffle_f32x4(u[c], u[4 + c], 0x44);
    const __m512 hi01 = _mm512_shuffle_f32x4(u[c], u[4 + c], 0xee);
    const __m512 lo23 = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0x44);
    const __m512 hi23 = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0xee);
    rows[c] = _mm512_shuffle_f32x4(lo01, lo23, 0x88);
    rows[4 + c] = _mm512_shuffle_f32x4(lo01, lo23, 0xdd);
    rows[8 + c] = _mm512_shuffle_f32x4(hi01, hi23, 0x88);
    rows[12 + c] = _mm512_shuffle_f32x4(hi01, hi23, 0xdd);
  }
}

}  // namespace
}  // namespace tsp::cpu
