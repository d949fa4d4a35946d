// SPDX-License-Identifier: MIT
// Block sets in a backend's memory, each list behind room that must not be read.
#pragma once

#include <algorithm>

#include "tests/support/problem.h"

namespace tsp::test {

class DeviceBlocks {
 public:
  DeviceBlocks(const Backend& backend, const Blocks& blocks)
      : block_(blocks.block),
        num_seqs_(blocks.rows.size()),
        num_sets_(blocks.rows.at(0).size()),
        longest_(longest_of(blocks)),
        rows_(backend, bytes(num_seqs_ * num_sets_ * longest_.rows * longest_.blocks)),
        counts_(backend, bytes(num_seqs_ * num_sets_ * longest_.rows)),
        columns_(backend, bytes(num_seqs_ * num_sets_ * longest_.columns)),
        num_columns_(backend, bytes(num_seqs_ * num_sets_)),
        has_columns_(!blocks.columns.empty()) {
    auto rows = rows_.read<int32_t>();
    auto counts = counts_.read<int32_t>();
    auto columns = columns_.read<int32_t>();
    auto num_columns = num_columns_.read<int32_t>();
    std::fill(rows.begin(), rows.end(), -1);
    std::fill(counts.begin(), counts.end(), -1);
    std::fill(columns.begin(), columns.end(), -1);
    for (size_t b = 0; b < num_seqs_; ++b) {
      for (size_t s = 0; s < num_sets_; ++s) {
        const size_t set = b * num_sets_ + s;
        for (size_t m = 0; m < blocks.rows[b][s].size(); ++m) {
          const auto& row = blocks.rows[b][s][m];
          counts[set * longest_.rows + m] = static_cast<int32_t>(row.size());
          put(row, rows, (set * longest_.rows + m) * longest_.blocks);
        }
        if (!has_columns_) continue;
        num_columns[set] = static_cast<int32_t>(blocks.columns[b][s].size());
        put(blocks.columns[b][s], columns, set * longest_.columns);
      }
    }
    rows_.write(rows);
    counts_.write(counts);
    columns_.write(columns);
    num_columns_.write(num_columns);
  }
  tsp_block_sets_t view() const {
    tsp_block_sets_t v{};
    v.blocks = rows_.as<int32_t>();
    v.counts = counts_.as<int32_t>();
    if (has_columns_) {
      v.columns = columns_.as<int32_t>();
      v.num_columns = num_columns_.as<int32_t>();
    }
    v.block = block_;
    v.num_sets = static_cast<int32_t>(num_sets_);
    v.row_stride = static_cast<int64_t>(longest_.blocks);
    v.set_stride = static_cast<int64_t>(longest_.rows * longest_.blocks);
    v.count_set_stride = static_cast<int64_t>(longest_.rows);
    v.column_set_stride = static_cast<int64_t>(longest_.columns);
    v.seq_stride = v.set_stride * v.num_sets;
    v.count_seq_stride = v.count_set_stride * v.num_sets;
    v.column_seq_stride = v.column_set_stride * v.num_sets;
    return v;
  }

 private:
  struct Longest {
    size_t rows = 1, blocks = 1, columns = 1;  // each with room for one more
  };
  static Longest longest_of(const Blocks& blocks) {
    Longest longest;
    for (const Sets& sequence : blocks.rows) {
      for (const auto& set : sequence) {
        longest.rows = std::max(longest.rows, set.size() + 1);
        for (const auto& row : set) longest.blocks = std::max(longest.blocks, row.size() + 1);
      }
    }
    for (const auto& sequence : blocks.columns) {
      for (const auto& set : sequence) longest.columns = std::max(longest.columns, set.size() + 1);
    }
    return longest;
  }
  static size_t bytes(size_t entries) { return entries * sizeof(int32_t); }
  static void put(const std::vector<int32_t>& list, std::vector<int32_t>& to, size_t at) {
    std::copy(list.begin(), list.end(), to.begin() + static_cast<int64_t>(at));
  }

  int32_t block_;
  size_t num_seqs_, num_sets_;
  Longest longest_;
  Bytes rows_, counts_, columns_, num_columns_;
  bool has_columns_;
};

}  // namespace tsp::test
