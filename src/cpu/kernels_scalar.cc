// SPDX-License-Identifier: MIT
// The kernels in scalar instructions; cpu.cmake gives this unit its flags.
#include "cpu/vec_scalar.h"
// After the vectors.
#include "cpu/table-inl.h"

namespace tsp::cpu {
constinit const Kernels kernels_scalar = attend_kernels<F32>();
}  // namespace tsp::cpu
