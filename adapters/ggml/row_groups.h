// SPDX-License-Identifier: MIT
// The sequences of a batch, read off its attention mask: rows of several sequences in one cache,
// caches with holes, cells in any order.
#pragma once

#include <cstdint>
#include <vector>

struct ggml_tensor;

namespace tsp::ggml_adapter {

/// Query rows that follow one another, each of which sees what the row before it saw and one cell
/// more: row i of the group sees the first k_len - num_rows + i + 1 of its cells.
struct RowGroup {
  int32_t first_row = 0;
  int32_t num_rows = 0;
  int32_t k_len = 0;           // cells that the last row sees
  int32_t first_cell = 0;      // they are first_cell, first_cell + 1, ... unless
  std::vector<int32_t> cells;  // [k_len] they are listed here
};

/// Rows that sequences of one batch have on average, at least: fewer are not worth a call each.
inline constexpr int32_t kFewestGroupRows = 16;

/// The groups that cover all rows, ascending; empty where the mask is of another kind (a sliding
/// window, no causality, values other than 0 and -inf, rows that see nothing). `mask` is F16 [n_kv,
/// rows, 1, streams] in host memory; `stream` picks a sequence with a cache of its own.
std::vector<RowGroup> read_row_groups(const ggml_tensor& mask, int64_t stream);

}  // namespace tsp::ggml_adapter
