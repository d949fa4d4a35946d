// SPDX-License-Identifier: MIT
// The inner loops of linear layers on packed operands, one table per arithmetic and instruction
// set. Activations lie in tiles of a few rows, weights in panels of some rows more, which are
// columns of the result. Both are cut along a row into groups of kGroup neighbours; the last one is
// filled up with zeros. How a group lies is each table's own.
#pragma once

#include <cstdint>
#include <vector>

#include "ggml.h"

namespace tsp::ggml_adapter::panels {

inline constexpr int64_t kGroup = 128;
inline constexpr int64_t kPackedRows = 4;  // of a panel, which is a multiple of it

/// Which part of a product: up to tile_rows rows by up to panel_rows columns, over groups that
/// follow one another.
struct Part {
  int64_t rows, columns, groups;
  bool add;  // to what c holds
};

struct Kernels {
  const char *arithmetic, *instructions;
  int64_t tile_rows, panel_rows;
  int64_t tile_group_bytes, panel_group_bytes;

  /// Dequantises whole blocks; null for a type that ggml must read.
  void (*(*reader)(ggml_type type))(const void* packed, float* out, int64_t count);
  /// Brings `count` rows of k values, dense, into a tile. Rows beyond `count` become zeros.
  void (*pack_tile)(const float* rows, int64_t count, int64_t k, uint8_t* tile);
  /// Brings silu(gate) * up, `count` rows of kGroup values each, dense, into one group of a tile.
  /// Rows beyond `count` become zeros.
  void (*pack_gated)(const float* gate, const float* up, int64_t count, uint8_t* group);
  /// Brings `count` values each of kPackedRows rows of a weight, `stride` apart, into groups of a
  /// panel that follow one another, `panel` being the first. `row`, a multiple of kPackedRows, is
  /// the first one's in the panel. A group that `count` does not fill ends in zeros.
  void (*pack_panel_rows)(const float* values, int64_t stride, int64_t count, int64_t row,
                          uint8_t* panel);
  /// c = the tile's rows by the panel's, from the groups that tile and panel point to on.
  void (*multiply)(const uint8_t* tile, const uint8_t* panel, const Part& part, float* c,
                   int64_t c_stride);
  /// As LinearEngine::normalise() says.
  void (*normalise)(const float* x, const float* factors, int64_t count, float eps, float* y);
  /// Around a thread's calls of multiply(); null where nothing is to be done.
  void (*begin)() = nullptr;
  void (*end)() = nullptr;
};

/// Those that this processor runs, the fastest first.
std::vector<const Kernels*> int8_kernels();
std::vector<const Kernels*> bf16_kernels();

}  // namespace tsp::ggml_adapter::panels
