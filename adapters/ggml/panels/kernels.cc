// SPDX-License-Identifier: MIT
#include "adapters/ggml/panels/kernels.h"

#ifdef __x86_64__
#include <cpuid.h>
#endif

namespace tsp::ggml_adapter::panels {

#ifdef __x86_64__

extern const Kernels kAvx512Vnni, kAvxVnni, kAvx512Bf16;

namespace {

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

}  // namespace

std::vector<const Kernels*> int8_kernels() {
  std::vector<const Kernels*> kernels;
  if (has_avx512() && __builtin_cpu_supports("avx512vnni")) kernels.push_back(&kAvx512Vnni);
  const bool avx_vnni = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("avxvnni");
  if (avx_vnni) kernels.push_back(&kAvxVnni);
  return kernels;
}

std::vector<const Kernels*> bf16_kernels() {
  std::vector<const Kernels*> kernels;
  if (has_avx512() && __builtin_cpu_supports("avx512bf16")) kernels.push_back(&kAvx512Bf16);
  return kernels;
}

bool has_amx_bf16() {
  constexpr unsigned kAmxBf16 = 1u << 22;
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kAmxBf16) != 0;
}

#else

std::vector<const Kernels*> int8_kernels() { return {}; }
std::vector<const Kernels*> bf16_kernels() { return {}; }
bool has_amx_bf16() { return false; }

#endif

}  // namespace tsp::ggml_adapter::panels
