// SPDX-License-Identifier: MIT
#include "dispatch/blocks.h"

#include <cinttypes>

#include "core/blocks.h"
#include "dispatch/checks.h"

namespace tsp {
namespace {

constexpr int64_t kMaxStride = int64_t{1} << 40;

tsp_status_t check_pointers(const tsp_block_sets_t& sets, bool data) {
  if (sets.blocks == nullptr && (sets.counts != nullptr || sets.columns != nullptr)) {
    return fail(TSP_INVALID_ARGUMENT, "blocks.%s: must be null without blocks.blocks",
                sets.counts != nullptr ? "counts" : "columns");
  }
  if (!data || sets.blocks == nullptr) return TSP_OK;
  if (sets.counts == nullptr) {
    return fail(TSP_INVALID_ARGUMENT, "blocks.counts: must not be null with blocks.blocks");
  }
  if (sets.columns != nullptr && sets.num_columns == nullptr) {
    return fail(TSP_INVALID_ARGUMENT, "blocks.num_columns: must not be null with blocks.columns");
  }
  return TSP_OK;
}

tsp_status_t check_shape(const tsp_block_sets_t& sets, int64_t num_q_heads, int64_t num_kv_heads) {
  if (sets.block < 16 || sets.block > 512 || sets.block % 16 != 0) {
    return fail(TSP_INVALID_ARGUMENT,
                "blocks.block: must be a multiple of 16 between 16 and 512 (0 = 128), got %d",
                sets.block);
  }
  if (sets.num_sets != num_q_heads && sets.num_sets != num_kv_heads && sets.num_sets != 1) {
    return fail(TSP_INVALID_ARGUMENT,
                "blocks.num_sets: must be Hq (%" PRId64 "), Hkv (%" PRId64 ") or 1, got %d",
                num_q_heads, num_kv_heads, sets.num_sets);
  }
  TSP_RETURN_IF_ERROR(check_range("blocks.row_stride", sets.row_stride, 0, kMaxStride));
  TSP_RETURN_IF_ERROR(check_range("blocks.set_stride", sets.set_stride, 0, kMaxStride));
  TSP_RETURN_IF_ERROR(check_range("blocks.seq_stride", sets.seq_stride, 0, kMaxStride));
  TSP_RETURN_IF_ERROR(check_range("blocks.count_set_stride", sets.count_set_stride, 0, kMaxStride));
  TSP_RETURN_IF_ERROR(check_range("blocks.count_seq_stride", sets.count_seq_stride, 0, kMaxStride));
  TSP_RETURN_IF_ERROR(
      check_range("blocks.column_set_stride", sets.column_set_stride, 0, kMaxStride));
  return check_range("blocks.column_seq_stride", sets.column_seq_stride, 0, kMaxStride);
}

tsp_status_t check_query_block(const tsp_block_sets_t& sets, const Entries& entries, int32_t seq,
                               int32_t set, int32_t m) {
  const QueryBlock row = query_block(sets, entries, seq, set, m);
  const int32_t first = row.begin / sets.block;
  const int32_t last = (row.end - 1) / sets.block;
  if (row.num_blocks < 1 || row.num_blocks > last + 1) {
    return fail(TSP_INVALID_ARGUMENT,
                "blocks.counts: must be between 1 and the key blocks up to the query block's last "
                "entry (%d); sequence %d, set %d, query block %d has %d",
                last + 1, seq, set, m, row.num_blocks);
  }
  int32_t previous = -1;
  int32_t own = 0;  // of first .. last
  for (int32_t i = 0; i < row.num_blocks; ++i) {
    const int32_t block = row.blocks[i];
    if (block <= previous || block > last) {
      return fail(TSP_INVALID_ARGUMENT,
                  "blocks.blocks: must ascend within 0 .. %d, the key block of the last entry; "
                  "sequence %d, set %d, query block %d, entry %d is %d after %d",
                  last, seq, set, m, i, block, previous);
    }
    if (block >= first) ++own;
    previous = block;
  }
  if (own != last - first + 1) {
    return fail(TSP_INVALID_ARGUMENT,
                "blocks.blocks: must list the key blocks that hold the query block's own entries, "
                "%d .. %d; sequence %d, set %d, query block %d lists %d of them",
                first, last, seq, set, m, own);
  }
  return TSP_OK;
}

tsp_status_t check_columns(const tsp_block_sets_t& sets, const Entries& entries, int32_t seq,
                           int32_t set) {
  const Columns columns = columns_of(sets, seq, set);
  if (columns.count < 0 || columns.count > entries.count) {
    return fail(TSP_INVALID_ARGUMENT,
                "blocks.num_columns: must be between 0 and the entries (%d); sequence %d, set %d "
                "has %d",
                entries.count, seq, set, columns.count);
  }
  int32_t previous = -1;
  for (int32_t i = 0; i < columns.count; ++i) {
    const int32_t column = columns.entries[i];
    if (column <= previous || column >= entries.count) {
      return fail(TSP_INVALID_ARGUMENT,
                  "blocks.columns: must ascend within 0 .. %d; sequence %d, set %d, entry %d is %d "
                  "after %d",
                  entries.count - 1, seq, set, i, column, previous);
    }
    previous = column;
  }
  return TSP_OK;
}

/// An index set and a block set that some head has together.
tsp_status_t check_lists(const tsp_block_sets_t& sets, const tsp_index_sets_t& selected,
                         const Seq& seq, int32_t index_set, int32_t set) {
  const Entries entries = entries_of(selected, seq, index_set);
  const int32_t rows = num_query_blocks(entries.num_queries(), sets.block);
  for (int32_t m = 0; m < rows; ++m) {
    TSP_RETURN_IF_ERROR(check_query_block(sets, entries, seq.index, set, m));
  }
  return check_columns(sets, entries, seq.index, set);
}

Region region(const char* name, const int32_t* data, const tsp_block_sets_t& sets, int32_t num_seqs,
              int64_t seq_stride, int64_t set_stride) {
  tsp_tensor_t view{};
  view.data = const_cast<int32_t*>(data);
  view.tokens = num_seqs;
  view.heads = sets.num_sets;
  view.dim = view.dim_stride = 1;
  view.token_stride = seq_stride;
  view.head_stride = set_stride;
  return {name, view};
}

}  // namespace

tsp_status_t check_blocks(const tsp_context_t& ctx, tsp_block_sets_t& sets,
                          const tsp_index_sets_t& selected, const tsp_batch_t& batch,
                          int64_t num_q_heads, int64_t num_kv_heads, bool data) {
  TSP_RETURN_IF_ERROR(check_pointers(sets, data));
  if (sets.blocks == nullptr) return TSP_OK;
  if (sets.block == 0) sets.block = 128;
  TSP_RETURN_IF_ERROR(check_shape(sets, num_q_heads, num_kv_heads));
  if (!data || !on_host(ctx)) return TSP_OK;
  const int32_t num_index_sets = selected.indices == nullptr ? 1 : selected.num_sets;
  const int32_t num_pairs = std::max(num_index_sets, sets.num_sets);
  for (int32_t b = 0; b < batch.num_seqs; ++b) {
    const Seq seq = seq_at(batch, b);
    for (int32_t pair = 0; seq.q_len > 0 && pair < num_pairs; ++pair) {
      TSP_RETURN_IF_ERROR(check_lists(sets, selected, seq, pair / (num_pairs / num_index_sets),
                                      pair / (num_pairs / sets.num_sets)));
    }
  }
  return TSP_OK;
}

BlockRegions block_regions(const tsp_block_sets_t& sets, const tsp_batch_t& batch) {
  return {
      region("blocks.blocks", sets.blocks, sets, batch.num_seqs, sets.seq_stride, sets.set_stride),
      region("blocks.counts", sets.counts, sets, batch.num_seqs, sets.count_seq_stride,
             sets.count_set_stride),
      region("blocks.columns", sets.columns, sets, batch.num_seqs, sets.column_seq_stride,
             sets.column_set_stride),
      region("blocks.num_columns", sets.columns == nullptr ? nullptr : sets.num_columns, sets,
             batch.num_seqs, sets.num_sets, 1)};
}

}  // namespace tsp
