// SPDX-License-Identifier: MIT
// The AMX kernels on emulated tiles, for tests where the processor has none; cpu.cmake gives this
// unit its flags.
#include "cpu/amx_emulated.h"
#include "cpu/vec_avx512.h"
// After the vectors.
#include "cpu/vec_avx512_bf16.h"
// After the tile operations and the bf16 arithmetic.
#include "cpu/vec_amx.h"
// After the arithmetic.
#include "cpu/table-inl.h"

namespace tsp::cpu {
constinit const Kernels kernels_amx_emulated = attend_kernels<Amx>();
}  // namespace tsp::cpu
