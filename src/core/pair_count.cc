// SPDX-License-Identifier: MIT
#include "core/pair_count.h"

#include "core/blocks.h"
#include "core/pairs.h"

namespace tsp {
namespace {

/// Of a query block: its key blocks up to each entry, and the columns beside them.
int64_t block_pairs(const QueryBlock& rows, const Columns& columns, const Entries& entries,
                    int32_t block) {
  int64_t pairs = 0;
  for (int32_t n = 0; n < rows.num_blocks; ++n) {
    const int32_t first = rows.blocks[n] * block;
    pairs += clipped_sum(std::max(rows.begin - first, 0), rows.end - first,
                         std::min(block, entries.count - first));
  }
  const int32_t* listed = rows.blocks;
  const int32_t* const end = rows.blocks + rows.num_blocks;
  for (int32_t i = 0; i < columns.count && columns.entries[i] < rows.end; ++i) {
    const int32_t entry = columns.entries[i];
    listed = std::find_if(listed, end, [&](int32_t n) { return n >= entry / block; });
    if (listed != end && *listed == entry / block) continue;
    pairs += rows.end - std::max(rows.begin, entry);
  }
  return pairs;
}

/// Of the entries of one head, by the lists of block set `set`.
int64_t entry_pairs(const tsp_attend_params_t& p, const Seq& seq, const Entries& entries,
                    int32_t set) {
  if (p.blocks.blocks == nullptr) {
    return clipped_sum(entries.first_query, entries.count, entries.count);
  }
  const Columns columns = columns_of(p.blocks, seq.index, set);
  int64_t pairs = 0;
  for (int32_t m = 0; m < num_query_blocks(entries.num_queries(), p.blocks.block); ++m) {
    pairs += block_pairs(query_block(p.blocks, entries, seq.index, set, m), columns, entries,
                         p.blocks.block);
  }
  return pairs;
}

/// Of the queries that the entries leave out, which see `near` keys.
int64_t left_out_pairs(const Seq& seq, const Entries& entries, int64_t near) {
  if (near == 0 || entries.list == nullptr) return 0;
  int64_t pairs = clipped_sum(seq.q_pos(), seq.k_len, near);
  for (int32_t i = entries.first_query; i < entries.count; ++i) {
    pairs -= std::min<int64_t>(entries.list[i] + 1, near);
  }
  return pairs;
}

}  // namespace

int64_t computed_pairs(const tsp_attend_params_t& p, const Seq& seq) {
  const int32_t token_sets = p.selected.indices == nullptr ? 1 : p.selected.num_sets;
  const int32_t block_sets = p.blocks.blocks == nullptr ? 1 : p.blocks.num_sets;
  const int32_t sets = std::max(token_sets, block_sets);  // one divides the other
  const bool local = p.dropped == TSP_DROPPED_LOCAL;
  const int64_t near = local ? int64_t{p.sink} + p.band : 0;
  int64_t pairs = 0;
  for (int32_t set = 0; set < sets; ++set) {
    const Entries entries = entries_of(p.selected, seq, set / (sets / token_sets));
    pairs += entry_pairs(p, seq, entries, set / (sets / block_sets)) +
             left_out_pairs(seq, entries, near);
  }
  return pairs * (p.q.heads / sets);
}

}  // namespace tsp
