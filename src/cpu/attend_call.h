// SPDX-License-Identifier: MIT
// What every item of one attend call shares, and how its tiles are put together.
#pragma once

#include "cpu/attend_groups.h"
#include "cpu/ops.h"

namespace tsp::cpu {

struct Call {
  const tsp_attend_params_t& p;
  const Kernels& k;
  float scale_log2;
  int32_t dim;
  size_t panel_bytes;
  size_t v_bytes;
  unsigned char* scratch;  // [threads, scratch_bytes]
  size_t scratch_bytes;    // of a tile, and of columns beside its blocks
  size_t tile_bytes;
  int32_t num_threads;

  const unsigned char* panels_at(const Group& group, int32_t key) const {
    return group.panels + static_cast<size_t>(key / k.panel_keys) * panel_bytes;
  }
  const unsigned char* values_at(const Group& group, int32_t key) const {
    return group.values + static_cast<size_t>(key) * v_bytes;
  }
};

/// A tile without rows.
Tile new_tile(const Call& call, int32_t thread);
void add_row(const Call& call, Tile& tile, const Seq& seq, int32_t q_row, int32_t head, int32_t lo,
             int32_t hi);
/// The tile's rows against the group's packed keys begin .. end - 1, begin a multiple of
/// panel_keys.
void attend_keys(const Call& call, const Group& group, const Tile& tile, int32_t begin,
                 int32_t end);

/// The group's keys first .. first + count - 1, first a multiple of panel_keys.
void pack_keys(const Call& call, const Group& group, int32_t first, int32_t count);
/// Zeros for the rows that were left out before each of the entries [begin, end) of one head, after
/// the last one too when end is the list's.
void zero_rows_between(const Call& call, const Group& group, int32_t head, int32_t begin,
                       int32_t end);

/// Bytes of a thread's columns beside blocks.
size_t side_bytes(const Call& call);
/// Query block m of a head in a group that attends by blocks.
void attend_query_block(const Call& call, const Group& group, int32_t head, int32_t m,
                        int32_t thread);
/// Item `item` of a group of left-out rows.
void attend_left_out(const Call& call, const Group& group, int32_t item, int32_t thread);

}  // namespace tsp::cpu
