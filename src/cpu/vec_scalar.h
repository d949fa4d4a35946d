// SPDX-License-Identifier: MIT
// Vectors of 4 floats in plain C++ (the compiler's own vector type): any machine, no flags, and
// what the other vec_*.h headers are checked against.
#pragma once

#include <cstdint>
#include <cstring>

#define TSP_INLINE inline __attribute__((always_inline))

namespace tsp::cpu {
namespace {

using Vec = float __attribute__((vector_size(16)));
using VecBits = uint32_t __attribute__((vector_size(16)));
constexpr int32_t kLanes = 4;
constexpr int32_t kPanelVecs = 2;  // micro-kernel 6 x 8
constexpr int32_t kMicroRows = 6;
constexpr bool kExp2Overflows = false;  // 2^x is infinite for x >= 128; else x must be <= 0

TSP_INLINE Vec set1(float x) { return Vec{x, x, x, x}; }
TSP_INLINE Vec zero() { return set1(0.0f); }
TSP_INLINE Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
TSP_INLINE void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
TSP_INLINE Vec add(Vec a, Vec b) { return a + b; }
TSP_INLINE Vec mul(Vec a, Vec b) { return a * b; }
TSP_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
TSP_INLINE Vec vmax(Vec a, Vec b) { return a > b ? a : b; }
TSP_INLINE float first_lane(Vec v) { return v[0]; }
TSP_INLINE float max2(float a, float b) { return a > b ? a : b; }
TSP_INLINE float reduce_max(Vec v) { return max2(max2(v[0], v[2]), max2(v[1], v[3])); }
TSP_INLINE float reduce_add(Vec v) { return (v[0] + v[2]) + (v[1] + v[3]); }

TSP_INLINE Vec keep_lanes(Vec v, int32_t begin, int32_t end, float fill) {
  for (int32_t i = 0; i < kLanes; ++i) v[i] = i >= begin && i < end ? v[i] : fill;
  return v;
}

/// 2^x, relative error below 3e-7 for -126 <= x <= 0; below that 2^-126; NaN stays NaN.
TSP_INLINE Vec exp2(Vec x) {
  x = x < set1(-126.0f) ? set1(-126.0f) : x;
  Vec whole = zero();
  VecBits exponent = {};
  for (int32_t i = 0; i < kLanes; ++i) {
    const float y = x[i] == x[i] ? x[i] : 0.0f;  // NaN has no integer part
    const auto toward_zero = static_cast<int32_t>(y);
    const int32_t down = toward_zero - (static_cast<float>(toward_zero) > y ? 1 : 0);
    whole[i] = static_cast<float>(down);
    exponent[i] = static_cast<uint32_t>(down) << 23;
  }
  const Vec f = x - whole;
  Vec p = set1(1.8775767e-3f);
  p = fma(p, f, set1(8.9893397e-3f));
  p = fma(p, f, set1(5.5826318e-2f));
  p = fma(p, f, set1(2.4015361e-1f));
  p = fma(p, f, set1(6.9315308e-1f));
  p = fma(p, f, set1(9.9999994e-1f));
  VecBits bits;
  std::memcpy(&bits, &p, sizeof bits);
  bits += exponent;
  std::memcpy(&p, &bits, sizeof p);
  return p;
}

TSP_INLINE float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
TSP_INLINE uint32_t to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

TSP_INLINE Vec load_f16(const uint16_t* p) {
  Vec v = zero();
  for (int32_t i = 0; i < kLanes; ++i) {
    const uint32_t sign = static_cast<uint32_t>(p[i] & 0x8000u) << 16;
    const uint32_t magnitude = static_cast<uint32_t>(p[i] & 0x7fffu) << 13;
    // As if the exponent were f32's, then scaled by 2^112: subnormals come out right too.
    const float scaled = from_bits(magnitude) * 0x1p112f;
    const uint32_t bits = magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : to_bits(scaled);
    v[i] = from_bits(bits | sign);
  }
  return v;
}
TSP_INLINE Vec load_bf16(const uint16_t* p) {
  return Vec{
      from_bits(static_cast<uint32_t>(p[0]) << 16), from_bits(static_cast<uint32_t>(p[1]) << 16),
      from_bits(static_cast<uint32_t>(p[2]) << 16), from_bits(static_cast<uint32_t>(p[3]) << 16)};
}
TSP_INLINE void store_f16(uint16_t* p, Vec v) {
  for (int32_t i = 0; i < kLanes; ++i) {
    const uint32_t sign = (to_bits(v[i]) >> 16) & 0x8000u;
    const uint32_t magnitude = to_bits(v[i]) & 0x7fffffffu;
    uint32_t half;
    if (magnitude > 0x7f800000u) {
      half = 0x7e00u;
    } else if (magnitude >= 0x47800000u) {
      half = 0x7c00u;
    } else if (magnitude < 0x38800000u) {  // a multiple of 2^-24, rounded by the float adder
      half = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
    } else {
      half = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
    }
    p[i] = static_cast<uint16_t>(sign | half);
  }
}
TSP_INLINE void store_bf16(uint16_t* p, Vec v) {
  for (int32_t i = 0; i < kLanes; ++i) {
    const uint32_t bits = to_bits(v[i]);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    p[i] = static_cast<uint16_t>(nan ? (bits >> 16) | 0x40u
                                     : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
}

TSP_INLINE void transpose(Vec (&rows)[kLanes]) {
  Vec t[kLanes];
  for (int32_t i = 0; i < kLanes; ++i) t[i] = Vec{rows[0][i], rows[1][i], rows[2][i], rows[3][i]};
  for (int32_t i = 0; i < kLanes; ++i) rows[i] = t[i];
}

}  // namespace
}  // namespace tsp::cpu
