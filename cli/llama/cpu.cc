// SPDX-License-Identifier: MIT
#include "cli/llama/cpu.h"

#include "ggml-cpu.h"

namespace tsp::cli {

std::string missing_for_ggml() {
  std::string missing;
#if defined(__x86_64__)
  const auto need = [&](int compiled_for, bool has, const char* name) {
    if (compiled_for != 0 && !has) missing += (missing.empty() ? "" : ", ") + std::string(name);
  };
  __builtin_cpu_init();
  need(ggml_cpu_has_sse3(), __builtin_cpu_supports("sse3"), "sse3");
  need(ggml_cpu_has_ssse3(), __builtin_cpu_supports("ssse3"), "ssse3");
  need(ggml_cpu_has_avx(), __builtin_cpu_supports("avx"), "avx");
  need(ggml_cpu_has_avx2(), __builtin_cpu_supports("avx2"), "avx2");
  need(ggml_cpu_has_bmi2(), __builtin_cpu_supports("bmi2"), "bmi2");
  need(ggml_cpu_has_fma(), __builtin_cpu_supports("fma"), "fma");
  need(ggml_cpu_has_f16c(), __builtin_cpu_supports("f16c"), "f16c");
  need(ggml_cpu_has_avx_vnni(), __builtin_cpu_supports("avxvnni"), "avx_vnni");
  need(ggml_cpu_has_avx512(), __builtin_cpu_supports("avx512f"), "avx512f");
  need(ggml_cpu_has_avx512_vbmi(), __builtin_cpu_supports("avx512vbmi"), "avx512_vbmi");
  need(ggml_cpu_has_avx512_vnni(), __builtin_cpu_supports("avx512vnni"), "avx512_vnni");
  need(ggml_cpu_has_avx512_bf16(), __builtin_cpu_supports("avx512bf16"), "avx512_bf16");
  need(ggml_cpu_has_amx_int8(), __builtin_cpu_supports("amx-int8"), "amx_int8");
#endif
  return missing;
}

}  // namespace tsp::cli
