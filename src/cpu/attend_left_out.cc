// SPDX-License-Identifier: MIT
// Rows that no set kept, with TSP_DROPPED_LOCAL: attention over the first tokens and the last ones.
// All heads of a KV head that share a set leave the same positions out, so their rows fill a tile
// together and the tile's keys are few.
#include "cpu/attend_call.h"

namespace tsp::cpu {
namespace {

/// The rows' bands are in lo and hi.
void attend_local_tile(const Call& call, const Group& group, const Tile& tile) {
  call.k.tile_begin(tile);
  if (call.p.sink > 0) {
    Tile sinks = tile;
    for (int32_t r = 0; r < tile.num_rows; ++r) {
      sinks.lo[r] = 0;
      sinks.hi[r] = std::min(call.p.sink, group.position(tile.lo[r]));
    }
    attend_keys(call, group, sinks, 0, sinks.hi[tile.num_rows - 1]);
  }
  attend_keys(call, group, tile, tile.lo[0] / call.k.panel_keys * call.k.panel_keys,
              tile.hi[tile.num_rows - 1]);
  call.k.tile_end(tile);
}

}  // namespace

void attend_left_out(const Call& call, const Group& group, int32_t item, int32_t thread) {
  const Seq seq = seq_at(call.p.batch, group.seq);
  const int32_t num_sets = group.num_heads / group.heads_per_set;
  const int32_t first_head = group.first_head + item % num_sets * group.heads_per_set;
  const int32_t heads_per_set = static_cast<int32_t>(call.p.q.heads) / call.p.selected.num_sets;
  const int32_t* const list = set_indices(call.p.selected, group.seq, first_head / heads_per_set);
  const int32_t* const list_end = list + call.p.selected.kept[group.seq];
  const int32_t first_row = item / num_sets * kLeftOutPositions;
  const int32_t end_row = std::min(first_row + kLeftOutPositions, seq.q_len);
  const int32_t* kept = std::lower_bound(list, list_end, first_row + seq.q_pos());

  Tile tile = new_tile(call, thread);
  for (int32_t q_row = first_row; q_row < end_row; ++q_row) {
    const int32_t position = q_row + seq.q_pos();
    if (kept != list_end && *kept == position) {
      ++kept;
      continue;
    }
    const int32_t lo = std::max(0, position - call.p.band + 1);
    for (int32_t head = first_head; head < first_head + group.heads_per_set; ++head) {
      add_row(call, tile, seq, q_row, head, lo - group.gap, position + 1 - group.gap);
      if (tile.num_rows < kTileRows) continue;
      attend_local_tile(call, group, tile);
      tile.num_rows = 0;
    }
  }
  if (tile.num_rows > 0) attend_local_tile(call, group, tile);
}

}  // namespace tsp::cpu
