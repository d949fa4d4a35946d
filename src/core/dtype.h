// SPDX-License-Identifier: MIT
// f16 and bf16 as bits, converted one value at a time. Vector code has its own in cpu/vec_*.h.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "tokensparse/types.h"

namespace tsp {

inline int64_t dtype_bytes(int32_t dtype) { return dtype == TSP_F32 ? 4 : 2; }
inline const char* dtype_name(int32_t dtype) {
  return dtype == TSP_F32 ? "f32" : dtype == TSP_F16 ? "f16" : dtype == TSP_BF16 ? "bf16" : "?";
}

inline float bf16_to_f32(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

/// Round to nearest even; NaN stays NaN.
inline uint16_t f32_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float f16_to_f32(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fu;
  const uint32_t mantissa = bits & 0x3ffu;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
  }
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

/// Round to nearest even; overflow gives infinity, NaN stays NaN.
inline uint16_t f32_to_f16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {  // below 2^-14: a multiple of 2^-24, rounded by the float adder
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

inline float load_as_f32(const void* data, int32_t dtype, int64_t offset) {
  if (dtype == TSP_F32) return static_cast<const float*>(data)[offset];
  const uint16_t bits = static_cast<const uint16_t*>(data)[offset];
  return dtype == TSP_F16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}

inline void store_from_f32(void* data, int32_t dtype, int64_t offset, float value) {
  if (dtype == TSP_F32) {
    static_cast<float*>(data)[offset] = value;
  } else {
    static_cast<uint16_t*>(data)[offset] =
        dtype == TSP_F16 ? f32_to_f16(value) : f32_to_bf16(value);
  }
}

}  // namespace tsp
