// SPDX-License-Identifier: MIT
// attend and score in bf16 arithmetic on AMX tiles; cpu.cmake gives this unit its flags.
#include "cpu/amx.h"
#include "cpu/vec_avx512.h"
// After the vectors.
#include "cpu/vec_avx512_bf16.h"
// After the tile operations and the bf16 arithmetic.
#include "cpu/vec_amx.h"
// After the arithmetic.
#include "cpu/table-inl.h"

namespace tsp::cpu {
constinit const Kernels kernels_amx_bf16 = attend_kernels<Amx>();
}  // namespace tsp::cpu
