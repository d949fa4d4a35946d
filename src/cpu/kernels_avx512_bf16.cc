// SPDX-License-Identifier: MIT
// attend and score in bf16 arithmetic; cpu.cmake gives this unit its flags.
#include "cpu/vec_avx512.h"
// After the vectors.
#include "cpu/vec_avx512_bf16.h"
// After the arithmetic.
#include "cpu/table-inl.h"

namespace tsp::cpu {
constinit const Kernels kernels_avx512_bf16 = attend_kernels<Bf16>();
}  // namespace tsp::cpu
