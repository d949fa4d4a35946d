// SPDX-License-Identifier: MIT
// The most arithmetic a core can do: one kernel per instruction set, in a file of its own with its
// own flags, that does nothing but multiply and add in registers.
#pragma once

#include <cstdint>

namespace tsp::bench {

/// Runs `rounds` rounds and returns the floating-point operations done. `sink` keeps the compiler
/// from dropping the work.
using PeakKernel = double (*)(int64_t rounds, float* sink);

double peak_generic(int64_t rounds, float* sink);  // 128-bit vectors of the baseline target
#if defined(__x86_64__)
double peak_avx2(int64_t rounds, float* sink);
double peak_avx512(int64_t rounds, float* sink);
double peak_avx512_bf16(int64_t rounds, float* sink);
double peak_amx_bf16(int64_t rounds, float* sink);
double peak_avx512_vnni(int64_t rounds, float* sink);  // of 8-bit integers
double peak_amx_int8(int64_t rounds, float* sink);     // the same
#endif

/// The kernel that bounds an `isa` of tsp_context_isa() for products of f32 values.
PeakKernel f32_peak_kernel(const char* isa);
/// The same for bf16 products; null where the instruction set multiplies no bf16.
PeakKernel bf16_peak_kernel(const char* isa);

}  // namespace tsp::bench
