// SPDX-License-Identifier: MIT
// The kernels in avx2 instructions; cpu.cmake gives this unit its flags.
#include "cpu/vec_avx2.h"
// After the vectors.
#include "cpu/table-inl.h"

namespace tsp::cpu {
constinit const Kernels kernels_avx2 = attend_kernels<F32>();
}  // namespace tsp::cpu
