// SPDX-License-Identifier: MIT
// The inner loops of 8-bit linear layers, one table per instruction set. The operands lie as
// layout.h says.
#pragma once

#include <cstdint>
#include <vector>

#include "ggml.h"

namespace tsp::ggml_adapter::int8 {

/// Which part of a product: up to kTileRows rows by up to kPanelRows columns, over groups that
/// follow one another.
struct Part {
  int64_t rows, columns, groups;
  bool add;  // to what c holds
};

struct Kernels {
  const char* name;  // of the instruction set

  /// Dequantises whole blocks; null for a type that ggml must read.
  void (*(*reader)(ggml_type type))(const void* packed, float* out, int64_t count);
  /// Quantises `count` rows of k values, dense, into a tile. Rows beyond `count` become zeros.
  void (*pack_tile)(const float* rows, int64_t count, int64_t k, uint8_t* tile);
  /// Quantises silu(gate) * up, `count` rows of kGroup values each, dense, into one group of a
  /// tile. Rows beyond `count` become zeros.
  void (*pack_gated)(const float* gate, const float* up, int64_t count, uint8_t* group);
  /// Quantises `count` values of one row of a weight into groups of a panel that follow one
  /// another, `panel` being the first. A group that `count` does not fill ends in zeros.
  void (*pack_panel_row)(const float* values, int64_t count, int64_t row, uint8_t* panel);
  /// c = the tile's rows by the panel's, from the groups that tile and panel point to on.
  void (*multiply)(const uint8_t* tile, const uint8_t* panel, const Part& part, float* c,
                   int64_t c_stride);
};

/// Those that this processor runs, the fastest first.
std::vector<const Kernels*> all_kernels();
/// The first of them, or null.
const Kernels* best_kernels();

}  // namespace tsp::ggml_adapter::int8
