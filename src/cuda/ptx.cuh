// SPDX-License-Identifier: MIT
// What kernels of every chip share: dtypes, shared addresses, cp.async, ex2, conversions.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace tsp::cuda {

struct Bf16 {};
struct F16 {};

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/// cp.async.cg.shared.global, 16 bytes; `valid` false writes zeros and reads nothing.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)),
               "l"(global), "r"(bytes)
               : "memory");
}
/// cp.async.commit_group
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
/// cp.async.wait_group: at most kPending groups of this thread are still in flight.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

/// ex2.approx: 2^x, exact zero for -inf.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

/// Two f32 values rounded to nearest even and packed, `low` in the lower half.
template <typename Type>
__device__ __forceinline__ uint32_t pack(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack<Bf16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
__device__ __forceinline__ uint32_t pack<F16>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

template <typename Type>
__device__ __forceinline__ float to_float(uint16_t bits);
template <>
__device__ __forceinline__ float to_float<Bf16>(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}
template <>
__device__ __forceinline__ float to_float<F16>(uint16_t bits) {
  return __half2float(__ushort_as_half(bits));
}

/// Replaces the halves of a word that are not finite by 0.
template <typename Type>
__device__ __forceinline__ uint32_t finite_or_zero(uint32_t word) {
  constexpr uint32_t kExponent = std::is_same_v<Type, Bf16> ? 0x7f80u : 0x7c00u;
  if ((word & kExponent) == kExponent) word &= 0xffff0000u;
  if ((word >> 16 & kExponent) == kExponent) word &= 0x0000ffffu;
  return word;
}

}  // namespace tsp::cuda
