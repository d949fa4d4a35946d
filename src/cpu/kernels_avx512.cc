// SPDX-License-Identifier: MIT
// The kernels in avx512 instructions; cpu.cmake gives this unit its flags.
#include "cpu/vec_avx512.h"
// After the vectors.
#include "cpu/table-inl.h"

namespace tsp::cpu {
constinit const Kernels kernels_avx512 = attend_kernels<F32>();
}  // namespace tsp::cpu
