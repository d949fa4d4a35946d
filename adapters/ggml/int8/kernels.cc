// SPDX-License-Identifier: MIT
#include "adapters/ggml/int8/kernels.h"

namespace tsp::ggml_adapter::int8 {

#ifdef __x86_64__

extern const Kernels kAvx512Vnni, kAvxVnni;

std::vector<const Kernels*> all_kernels() {
  const bool avx512_vnni =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
      __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx_vnni = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("avxvnni");
  std::vector<const Kernels*> kernels;
  if (avx512_vnni) kernels.push_back(&kAvx512Vnni);
  if (avx_vnni) kernels.push_back(&kAvxVnni);
  return kernels;
}

#else

std::vector<const Kernels*> all_kernels() { return {}; }

#endif

const Kernels* best_kernels() {
  const std::vector<const Kernels*> kernels = all_kernels();
  return kernels.empty() ? nullptr : kernels.front();
}

}  // namespace tsp::ggml_adapter::int8
