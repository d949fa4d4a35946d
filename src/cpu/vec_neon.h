// SPDX-License-Identifier: MIT
// Vectors of 4 floats: NEON of any 64-bit ARM. The same functions as vec_avx512.h.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#define TSP_INLINE inline __attribute__((always_inline))

namespace tsp::cpu {
namespace {

using Vec = float32x4_t;
constexpr int32_t kLanes = 4;
constexpr int32_t kPanelVecs = 4;  // micro-kernel 6 x 16: 24 sums, 4 of K or V, the rest spare
constexpr int32_t kMicroRows = 6;
constexpr bool kExp2Overflows = false;  // 2^x is infinite for x >= 128; else x must be <= 0

TSP_INLINE Vec zero() { return vdupq_n_f32(0.0f); }
TSP_INLINE Vec set1(float x) { return vdupq_n_f32(x); }
TSP_INLINE Vec load(const float* p) { return vld1q_f32(p); }
TSP_INLINE void store(float* p, Vec v) { vst1q_f32(p, v); }
TSP_INLINE Vec add(Vec a, Vec b) { return vaddq_f32(a, b); }
TSP_INLINE Vec mul(Vec a, Vec b) { return vmulq_f32(a, b); }
TSP_INLINE Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
TSP_INLINE Vec vmax(Vec a, Vec b) { return vmaxq_f32(a, b); }
TSP_INLINE float reduce_max(Vec v) { return vmaxvq_f32(v); }
TSP_INLINE float reduce_add(Vec v) { return vaddvq_f32(v); }
TSP_INLINE float first_lane(Vec v) { return vgetq_lane_f32(v, 0); }

/// Lanes outside [begin, end) become `fill`.
TSP_INLINE Vec keep_lanes(Vec v, int32_t begin, int32_t end, float fill) {
  constexpr int32_t kLane[kLanes] = {0, 1, 2, 3};
  const int32x4_t lane = vld1q_s32(kLane);
  const uint32x4_t inside =
      vandq_u32(vcgeq_s32(lane, vdupq_n_s32(begin)), vcltq_s32(lane, vdupq_n_s32(end)));
  return vbslq_f32(inside, v, set1(fill));
}

/// 2^x, relative error below 2e-7 for -126 <= x <= 0; below that 2^-126; NaN stays NaN.
TSP_INLINE Vec exp2(Vec x) {
  x = vmaxq_f32(x, set1(-126.0f));  // a NaN wins
  const Vec whole = vrndmq_f32(x);
  const Vec f = vsubq_f32(x, whole);
  Vec p = set1(1.8775767e-3f);
  p = fma(p, f, set1(8.9893397e-3f));
  p = fma(p, f, set1(5.5826318e-2f));
  p = fma(p, f, set1(2.4015361e-1f));
  p = fma(p, f, set1(6.9315308e-1f));
  p = fma(p, f, set1(9.9999994e-1f));
  const int32x4_t exponent = vshlq_n_s32(vcvtq_s32_f32(whole), 23);  // of NaN: 0
  return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), exponent));
}

TSP_INLINE Vec load_f16(const uint16_t* p) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
TSP_INLINE Vec load_bf16(const uint16_t* p) {
  return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
TSP_INLINE void store_f16(uint16_t* p, Vec v) {
  vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v)));
}
/// Round to nearest even; NaN stays NaN.
TSP_INLINE void store_bf16(uint16_t* p, Vec v) {
  const uint32x4_t bits = vreinterpretq_u32_f32(v);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  const uint32x4_t number = vceqq_f32(v, v);
  vst1_u16(p, vshrn_n_u32(vbslq_u32(number, rounded, quiet), 16));
}

/// rows[i] lane j <-> rows[j] lane i.
TSP_INLINE void transpose(Vec (&rows)[kLanes]) {
  const float64x2_t even01 = vreinterpretq_f64_f32(vtrn1q_f32(rows[0], rows[1]));
  const float64x2_t odd01 = vreinterpretq_f64_f32(vtrn2q_f32(rows[0], rows[1]));
  const float64x2_t even23 = vreinterpretq_f64_f32(vtrn1q_f32(rows[2], rows[3]));
  const float64x2_t odd23 = vreinterpretq_f64_f32(vtrn2q_f32(rows[2], rows[3]));
  rows[0] = vreinterpretq_f32_f64(vzip1q_f64(even01, even23));
  rows[1] = vreinterpretq_f32_f64(vzip1q_f64(odd01, odd23));
  rows[2] = vreinterpretq_f32_f64(vzip2q_f64(even01, even23));
  rows[3] = vreinterpretq_f32_f64(vzip2q_f64(odd01, odd23));
}

}  // namespace
}  // namespace tsp::cpu
