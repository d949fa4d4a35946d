// SPDX-License-Identifier: MIT
// The tables of kernels on AMX. Included after the tile operations.
#pragma once

#include "adapters/ggml/panels/amx_bf16-inl.h"
#include "adapters/ggml/panels/amx_int8-inl.h"
#include "adapters/ggml/panels/avx512_reader-inl.h"

namespace tsp::ggml_adapter::panels {
namespace {

constexpr Kernels amx_int8_table(const char* instructions) {
  using Layout = AmxInt8::Layout;
  return {"int8",
          instructions,
          AmxInt8::kRows,
          AmxInt8::kColumns,
          Layout::kTileGroupBytes,
          Layout::kPanelGroupBytes,
          block_reader<float>,
          pack_tile<Layout>,
          pack_gated<Layout>,
          pack_panel_rows<Layout>,
          AmxInt8::multiply,
          normalise,
          cpu::tile_configure,
          cpu::tile_release};
}

constexpr Kernels amx_bf16_table(const char* instructions) {
  return {"bf16",
          instructions,
          AmxBf16::kRows,
          AmxBf16::kColumns,
          AmxBf16::kRows * kRowBytes,
          AmxBf16::kColumns * kRowBytes,
          block_reader<float>,
          pack_tile<AmxBf16::kRows>,
          pack_gated<AmxBf16::kRows>,
          pack_panel_rows,
          AmxBf16::multiply,
          normalise,
          cpu::tile_configure,
          cpu::tile_release};
}

}  // namespace
}  // namespace tsp::ggml_adapter::panels
