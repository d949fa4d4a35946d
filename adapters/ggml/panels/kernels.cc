// SPDX-License-Identifier: MIT
#include "adapters/ggml/panels/kernels.h"

#ifdef __x86_64__
#include "src/core/tile_permission.h"
#endif

namespace tsp::ggml_adapter::panels {

#ifdef __x86_64__

extern const Kernels kAmxInt8, kAvx512Vnni, kAvxVnni, kAmxBf16, kAvx512Bf16;

namespace {

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

}  // namespace

std::vector<const Kernels*> int8_kernels() {
  std::vector<const Kernels*> kernels;
  if (has_avx512() && may_use_tiles(TileProducts::kInt8)) kernels.push_back(&kAmxInt8);
  if (has_avx512() && __builtin_cpu_supports("avx512vnni")) kernels.push_back(&kAvx512Vnni);
  const bool avx_vnni = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("avxvnni");
  if (avx_vnni) kernels.push_back(&kAvxVnni);
  return kernels;
}

std::vector<const Kernels*> bf16_kernels() {
  std::vector<const Kernels*> kernels;
  if (has_avx512_bf16() && may_use_tiles(TileProducts::kBf16)) kernels.push_back(&kAmxBf16);
  if (has_avx512_bf16()) kernels.push_back(&kAvx512Bf16);
  return kernels;
}

#else

std::vector<const Kernels*> int8_kernels() { return {}; }
std::vector<const Kernels*> bf16_kernels() { return {}; }

#endif

}  // namespace tsp::ggml_adapter::panels
