// SPDX-License-Identifier: MIT
#include "core/cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>

#include "core/tile_permission.h"
#endif

namespace tsp {

#if defined(__x86_64__)
namespace {
/// clang 14's __builtin_cpu_supports does not know the name.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

}  // namespace

// The compiler's own detection also asks whether the system saves the wide registers.
bool has_avx2() {
  // Once: in a virtual machine the CPUID instruction is a call to its host.
  static const bool has =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  return has;
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
bool has_amx_bf16() {
  static const bool has = has_avx512_bf16() && may_use_tiles(TileProducts::kBf16);
  return has;
}
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
bool has_avx512_bf16() { return false; }
bool has_amx_bf16() { return false; }
#endif

}  // namespace tsp
