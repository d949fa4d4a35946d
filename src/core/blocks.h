// SPDX-License-Identifier: MIT
// Which entries a query block reads: lists of key blocks and columns, once dispatch has checked
// them and filled in the block's size. Host memory.
#pragma once

#include <algorithm>

#include "core/layout.h"

namespace tsp {

/// What a head attends in a sequence: its list, or every position.
struct Entries {
  const int32_t* list;  // ascending positions; null: entry = position
  int32_t count;
  int32_t first_query;  // first entry whose position is a query's
  int32_t position(int32_t entry) const { return list == nullptr ? entry : list[entry]; }
  int32_t num_queries() const { return count - first_query; }
};

inline Entries entries_of(const tsp_index_sets_t& selected, const Seq& seq, int32_t set) {
  if (selected.indices == nullptr || selected.kept[seq.index] == seq.k_len) {
    return {nullptr, seq.k_len, seq.q_pos()};
  }
  const int32_t* const list = set_indices(selected, seq.index, set);
  const int32_t count = selected.kept[seq.index];
  const int32_t* const first = std::lower_bound(list, list + count, seq.q_pos());
  return {list, count, static_cast<int32_t>(first - list)};
}

inline int32_t num_query_blocks(int32_t num_queries, int32_t block) {
  return (num_queries + block - 1) / block;
}

/// Query block m of a set: its entries begin .. end - 1 and the key blocks it lists.
struct QueryBlock {
  int32_t begin;
  int32_t end;
  const int32_t* blocks;
  int32_t num_blocks;
};

inline QueryBlock query_block(const tsp_block_sets_t& sets, const Entries& entries, int32_t seq,
                              int32_t set, int32_t m) {
  const int32_t begin = entries.first_query + m * sets.block;
  return {begin, std::min(begin + sets.block, entries.count),
          sets.blocks + seq * sets.seq_stride + set * sets.set_stride + m * sets.row_stride,
          sets.counts[seq * sets.count_seq_stride + set * sets.count_set_stride + m]};
}

struct Columns {
  const int32_t* entries;
  int32_t count;
};

inline Columns columns_of(const tsp_block_sets_t& sets, int32_t seq, int32_t set) {
  if (sets.columns == nullptr) return {nullptr, 0};
  return {sets.columns + seq * sets.column_seq_stride + set * sets.column_set_stride,
          sets.num_columns[int64_t{seq} * sets.num_sets + set]};
}

}  // namespace tsp
