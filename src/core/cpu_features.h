// SPDX-License-Identifier: MIT
// What this machine's processor, and the operating system under it, can run.
#pragma once

namespace tsp {

bool has_avx2();         // with FMA and F16C
bool has_avx512();       // F, BW, DQ and VL
bool has_avx512_bf16();  // the above and BF16
bool has_amx_bf16();     // the above and AMX tiles, which this process asked to use (Linux)

}  // namespace tsp
