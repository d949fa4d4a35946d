// SPDX-License-Identifier: MIT
// The kernels in NEON instructions, which every 64-bit ARM processor has.
#include "cpu/vec_neon.h"
// After the vectors.
#include "cpu/table-inl.h"

namespace tsp::cpu {
constinit const Kernels kernels_neon = attend_kernels<F32>();
}  // namespace tsp::cpu
