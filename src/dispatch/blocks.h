// SPDX-License-Identifier: MIT
// The rules of block sets.
#pragma once

#include "core/context.h"
#include "dispatch/overlap.h"

namespace tsp {

/// Shape of the block sets, the block's default, and on a host the lists, with `data`. The index
/// sets have been checked; indices null: blocks of positions.
[[nodiscard]] tsp_status_t check_blocks(const tsp_context_t& ctx, tsp_block_sets_t& sets,
                                        const tsp_index_sets_t& selected, const tsp_batch_t& batch,
                                        int64_t num_q_heads, int64_t num_kv_heads, bool data);

/// Where each list begins: how long it is only its own counts say.
struct BlockRegions {
  Region blocks, counts, columns, num_columns;
};
BlockRegions block_regions(const tsp_block_sets_t& sets, const tsp_batch_t& batch);

}  // namespace tsp
