// SPDX-License-Identifier: MIT
// The tables of kernels on AMX. Included after the tile operations.
#pragma once

#include "adapters/ggml/panels/amx_bf16-inl.h"
#include "adapters/ggml/panels/amx_int8-inl.h"

namespace tsp::ggml_adapter::panels {
namespace {

constexpr Kernels in_tiles(Kernels kernels) {
  kernels.begin = cpu::tile_configure;
  kernels.end = cpu::tile_release;
  return kernels;
}

constexpr Kernels amx_int8_table(const char* instructions) {
  return in_tiles(int8_table<AmxInt8::Layout>(instructions, AmxInt8::multiply));
}

constexpr Kernels amx_bf16_table(const char* instructions) {
  return in_tiles(bf16_table<AmxBf16::kRows>(instructions, AmxBf16::multiply));
}

}  // namespace
}  // namespace tsp::ggml_adapter::panels
