// SPDX-License-Identifier: MIT
// Vectors of 8 floats: AVX2, FMA and F16C. The same functions as vec_avx512.h.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#define TSP_INLINE inline __attribute__((always_inline))

namespace tsp::cpu {
namespace {

using Vec = __m256;
constexpr int32_t kLanes = 8;
constexpr int32_t kPanelVecs = 2;  // micro-kernel 6 x 16: 12 sums, 2 of K or V, 1 broadcast of 16
constexpr int32_t kMicroRows = 6;
constexpr bool kExp2Overflows = false;  // 2^x is infinite for x >= 128; else x must be <= 0

TSP_INLINE Vec zero() { return _mm256_setzero_ps(); }
TSP_INLINE Vec set1(float x) { return _mm256_set1_ps(x); }
TSP_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
TSP_INLINE void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
TSP_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
TSP_INLINE Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
TSP_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
TSP_INLINE Vec vmax(Vec a, Vec b) { return _mm256_max_ps(a, b); }
TSP_INLINE float first_lane(Vec v) { return _mm256_cvtss_f32(v); }
TSP_INLINE float reduce_max(Vec v) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
TSP_INLINE float reduce_add(Vec v) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

TSP_INLINE Vec keep_lanes(Vec v, int32_t begin, int32_t end, float fill) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i inside = _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(begin), lane),
                                             _mm256_cmpgt_epi32(_mm256_set1_epi32(end), lane));
  return _mm256_blendv_ps(set1(fill), v, _mm256_castsi256_ps(inside));
}

/// 2^x, relative error below 2e-7 for -126 <= x <= 0; below that 2^-126; NaN stays NaN.
TSP_INLINE Vec exp2(Vec x) {
  x = _mm256_max_ps(set1(-126.0f), x);  // a NaN in the second operand wins
  const Vec whole = _mm256_floor_ps(x);
  const Vec f = _mm256_sub_ps(x, whole);
  Vec p = set1(1.8775767e-3f);
  p = fma(p, f, set1(8.9893397e-3f));
  p = fma(p, f, set1(5.5826318e-2f));
  p = fma(p, f, set1(2.4015361e-1f));
  p = fma(p, f, set1(6.9315308e-1f));
  p = fma(p, f, set1(9.9999994e-1f));
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
}

TSP_INLINE Vec load_f16(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
TSP_INLINE Vec load_bf16(const uint16_t* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
TSP_INLINE void store_f16(uint16_t* p, Vec v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
TSP_INLINE void store_bf16(uint16_t* p, Vec v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i high = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(
      _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i words = _mm256_blendv_epi8(rounded, quiet, nan);
  const __m256i packed = _mm256_packus_epi32(words, words);  // within each 128-bit half
  const __m256i joined = _mm256_permute4x64_epi64(packed, 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(joined));
}

TSP_INLINE void transpose(Vec (&rows)[kLanes]) {
  __m256 t[kLanes];
  for (int i = 0; i < kLanes; i += 2) {
    t[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
  __m256 u[kLanes];
  for (int i = 0; i < kLanes; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int c = 0; c < 4; ++c) {
    rows[c] = _mm256_permute2f128_ps(u[c], u[4 + c], 0x20);
    rows[4 + c] = _mm256_permute2f128_ps(u[c], u[4 + c], 0x31);
  }
}

}  // namespace
}  // namespace tsp::cpu
