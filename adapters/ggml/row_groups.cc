// SPDX-License-Identifier: MIT
#include "adapters/ggml/row_groups.h"

#include <algorithm>

#include "adapters/ggml/causal_mask.h"
#include "adapters/ggml/mask_rows.h"

namespace tsp::ggml_adapter {
namespace {

/// Entries in which two rows differ. Counted to the end: so the compiler vectorises it.
int64_t count_differences(const ggml_fp16_t* a, const ggml_fp16_t* b, int64_t size) {
  int64_t total = 0;
  constexpr int64_t kBlock = 8192;  // fits a 16-bit counter a lane
  for (int64_t begin = 0; begin < size; begin += kBlock) {
    const int64_t end = std::min(size, begin + kBlock);
    uint16_t count = 0;
    for (int64_t i = begin; i < end; ++i) count = static_cast<uint16_t>(count + (a[i] != b[i]));
    total += count;
  }
  return total;
}

/// Begins a group with the cells that the row sees; false when its values are not 0 and -inf.
bool begin_group(const ggml_fp16_t* row, int64_t n_kv, int32_t index, RowGroup& group) {
  group = {.first_row = index, .num_rows = 1, .k_len = 0, .first_cell = 0, .cells = {}};
  for (int64_t cell = 0; cell < n_kv; ++cell) {
    if (row[cell] == kVisible) {
      group.cells.push_back(static_cast<int32_t>(cell));
    } else if (row[cell] != kHidden) {
      return false;
    }
  }
  return !group.cells.empty();
}

/// Adds the row if it sees one cell more than the one before.
bool extend_group(const ggml_fp16_t* before, const ggml_fp16_t* row, int64_t n_kv,
                  RowGroup& group) {
  if (count_differences(before, row, n_kv) != 1) return false;
  const auto cell = std::mismatch(row, row + n_kv, before).first - row;
  if (row[cell] != kVisible) return false;
  group.cells.push_back(static_cast<int32_t>(cell));
  ++group.num_rows;
  return true;
}

void finish_group(RowGroup& group) {
  group.k_len = static_cast<int32_t>(group.cells.size());
  group.first_cell = group.cells.front();
  for (size_t i = 0; i < group.cells.size(); ++i) {
    if (group.cells[i] != group.first_cell + static_cast<int32_t>(i)) return;
  }
  group.cells.clear();
}

}  // namespace

std::vector<RowGroup> read_row_groups(const ggml_tensor& whole_mask, int64_t stream) {
  ggml_tensor mask = whole_mask;
  mask.data = static_cast<char*>(mask.data) + static_cast<size_t>(stream) * mask.nb[3];
  const int64_t n_kv = mask.ne[0], rows = mask.ne[1];
  const CausalMask causal = read_causal_mask(mask);  // most are this
  if (causal.kind == MaskKind::kPrefix) {
    return {{.first_row = 0,
             .num_rows = static_cast<int32_t>(rows),
             .k_len = causal.k_len,
             .first_cell = 0,
             .cells = {}}};
  }
  const int64_t most_groups = std::max<int64_t>(1, rows / kFewestGroupRows);
  std::vector<RowGroup> groups;
  for (int64_t row = 0; row < rows; ++row) {
    const ggml_fp16_t* values = row_of(mask, row);
    if (row > 0 && extend_group(row_of(mask, row - 1), values, n_kv, groups.back())) continue;
    if (static_cast<int64_t>(groups.size()) == most_groups) return {};
    RowGroup group;
    if (!begin_group(values, n_kv, static_cast<int32_t>(row), group)) return {};
    groups.push_back(std::move(group));
  }
  for (RowGroup& group : groups) finish_group(group);
  return groups;
}

}  // namespace tsp::ggml_adapter
