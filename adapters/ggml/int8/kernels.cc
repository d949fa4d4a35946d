// SPDX-License-Identifier: MIT
#include "adapters/ggml/int8/kernels.h"

namespace tsp::ggml_adapter::int8 {

#ifdef __x86_64__

extern const Kernels kAvx512Vnni;

const Kernels* best_kernels() {
  const bool avx512_vnni =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
      __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  return avx512_vnni ? &kAvx512Vnni : nullptr;
}

#else

const Kernels* best_kernels() { return nullptr; }

#endif

}  // namespace tsp::ggml_adapter::int8
