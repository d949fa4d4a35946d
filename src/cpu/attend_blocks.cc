// SPDX-License-Identifier: MIT
// Rows that read listed key blocks only: tiles are cut within a query block, so that all of a
// tile's rows read the same blocks, and walk over spans of adjacent ones. Columns beside the blocks
// are gathered into a panel of their own, once for all tiles of the query block.
#include <array>

#include "core/blocks.h"
#include "cpu/attend_call.h"

namespace tsp::cpu {
namespace {

constexpr int32_t kSideKeys = 1024;  // columns packed at a time; a multiple of every block_keys

/// The key blocks of a query block as spans of entries, up to `end`.
template <typename Fn>
void for_each_span(const QueryBlock& row, int32_t block, int32_t end, Fn&& fn) {
  for (int32_t i = 0; i < row.num_blocks;) {
    const int32_t begin = row.blocks[i] * block;
    int32_t stop = begin + block;
    for (++i; i < row.num_blocks && row.blocks[i] * block == stop; ++i) stop += block;
    if (begin >= end) return;
    fn(begin, std::min(stop, end));
  }
}

/// A tile's rows against the key blocks of their query block, which begin with panels: spans joined
/// until they fill a step of the kernel, so that short ones don't pay one each. Rows count joined
/// keys then: those before the diagonal are whole blocks, those on it lie side by side.
void attend_joined(const Call& call, const Group& group, const QueryBlock& row, int32_t begin,
                   int32_t end, Tile& tile) {
  const int32_t block = call.p.blocks.block;
  int32_t whole = 0;
  while (whole < row.num_blocks && (row.blocks[whole] + 1) * block <= begin) ++whole;
  const int32_t skipped = row.blocks[whole] * block - whole * block;
  for (int32_t r = 0; r < tile.num_rows; ++r) tile.hi[r] -= skipped;
  std::array<KeySpan, kMaxSpans> spans;
  int32_t n0 = 0, keys = 0, count = 0;
  const auto attend = [&] {
    if (count > 0) call.k.tile_block(tile, n0, spans.data(), count);
    tile.num_ahead = -1;  // asked for
    n0 += keys;
    keys = count = 0;
  };
  for_each_span(row, block, end, [&](int32_t first, int32_t stop) {
    while (first < stop) {
      const int32_t taken = std::min(stop - first, call.k.block_keys - keys);
      spans[static_cast<size_t>(count++)] = {taken, call.panels_at(group, first),
                                             call.values_at(group, first)};
      keys += taken;
      first += taken;
      if (keys == call.k.block_keys) attend();
    }
  });
  attend();
}

/// The queries of the tile that comes after this one on the thread: in the query block, or of a
/// head that reads the same keys. Few blocks leave little to compute between them, and waiting for
/// memory was 13 % of the time at a tenth of the pairs (8,192 tokens, D 64, f32 rows, one thread, 2
/// cores AMD EPYC Zen 5, 2026-11-27).
void name_next_rows(const Call& call, const Group& group, const Seq& seq, int32_t head,
                    const QueryBlock& row, int32_t end, Tile& tile) {
  tile.num_ahead = 0;
  const bool last = end == row.end;
  const int32_t next = last ? head + call.num_threads : head;
  if (next >= group.first_head + group.num_heads) return;
  const int32_t first = last ? row.begin : end;
  for (int32_t i = first; i < std::min(first + kTileRows, row.end); ++i) {
    tile.ahead_offset[tile.num_ahead++] =
        q_row_offset(call.p.q, seq, group.position(i) - seq.q_pos(), next);
  }
}

/// Columns that lie in no key block of the query block, packed a chunk at a time.
class SideKeys {
 public:
  SideKeys(const Call& call, const Group& group, const QueryBlock& row, const Columns& columns,
           int32_t thread)
      : call_(call), group_(group), row_(row), columns_(columns) {
    if (columns.count == 0) return;
    unsigned char* const base =
        call.scratch + static_cast<size_t>(thread) * call.scratch_bytes + call.tile_bytes;
    positions_ = reinterpret_cast<int32_t*>(base);
    side_.list = positions_;
    side_.seq = group.seq;
    side_.kv_head = group.kv_head;
    side_.panels = base + kSideKeys * sizeof(int32_t);
    side_.values =
        side_.panels + static_cast<size_t>(kSideKeys / call.k.panel_keys) * call.panel_bytes;
  }
  /// All of them for the rows of a tile, whose last ones are in `hi`.
  void attend(const Tile& tile) {
    for (int32_t at = 0; at < columns_.count; at = next_) {
      if (at != packed_) pack(at);
      if (side_.num_keys == 0) return;
      Tile seen = tile;
      for (int32_t r = 0; r < tile.num_rows; ++r) {
        const int32_t position = group_.position(tile.hi[r] - 1);
        const int32_t* const first = positions_;
        seen.lo[r] = 0;
        seen.hi[r] =
            static_cast<int32_t>(std::upper_bound(first, first + side_.num_keys, position) - first);
      }
      attend_keys(call_, side_, seen, 0, seen.hi[tile.num_rows - 1]);
    }
  }

 private:
  void pack(int32_t first) {
    const int32_t block = call_.p.blocks.block;
    const int32_t* listed = row_.blocks;
    const int32_t* const listed_end = row_.blocks + row_.num_blocks;
    side_.num_keys = 0;
    packed_ = first;
    for (next_ = first; next_ < columns_.count && side_.num_keys < kSideKeys; ++next_) {
      const int32_t entry = columns_.entries[next_];
      if (entry >= row_.end) {
        next_ = columns_.count;
        break;
      }
      listed = std::lower_bound(listed, listed_end, entry / block);
      if (listed != listed_end && *listed == entry / block) continue;
      positions_[side_.num_keys++] = group_.position(entry);
    }
    pack_keys(call_, side_, 0, side_.num_keys);
  }

  const Call& call_;
  const Group& group_;
  const QueryBlock& row_;
  const Columns columns_;
  int32_t* positions_ = nullptr;
  Group side_{};
  int32_t packed_ = -1;  // the first column of what is packed
  int32_t next_ = 0;     // and the first behind it
};

}  // namespace

bool lists_everything(const tsp_block_sets_t& sets, const Group& group, int32_t set) {
  const Entries entries{group.list, group.num_keys, group.first_query};
  const int32_t rows = num_query_blocks(entries.num_queries(), sets.block);
  for (int32_t m = 0; m < rows; ++m) {
    const QueryBlock row = query_block(sets, entries, group.seq, set, m);
    if (row.num_blocks != (row.end - 1) / sets.block + 1) return false;
  }
  return true;
}

size_t side_bytes(const Call& call) {
  if (call.p.blocks.columns == nullptr) return 0;
  return kSideKeys * sizeof(int32_t) +
         static_cast<size_t>(kSideKeys / call.k.panel_keys) * call.panel_bytes +
         kSideKeys * call.v_bytes;
}

void attend_query_block(const Call& call, const Group& group, int32_t head, int32_t m,
                        int32_t thread) {
  const Seq seq = seq_at(call.p.batch, group.seq);
  const Entries entries{group.list, group.num_keys, group.first_query};
  const tsp_block_sets_t& sets = call.p.blocks;
  const auto set = static_cast<int32_t>(head / (call.p.q.heads / sets.num_sets));
  const QueryBlock row = query_block(sets, entries, group.seq, set, m);
  SideKeys side(call, group, row, columns_of(sets, group.seq, set), thread);
  for (int32_t begin = row.begin; begin < row.end; begin += kTileRows) {
    const int32_t end = std::min(begin + kTileRows, row.end);
    Tile tile = new_tile(call, thread);
    for (int32_t i = begin; i < end; ++i) {
      add_row(call, tile, seq, group.position(i) - seq.q_pos(), head, 0, i + 1);
    }
    call.k.tile_begin(tile);
    side.attend(tile);
    name_next_rows(call, group, seq, head, row, end, tile);
    if (sets.block % call.k.panel_keys == 0) {
      attend_joined(call, group, row, begin, end, tile);
    } else {
      for_each_span(row, sets.block, end, [&](int32_t first, int32_t stop) {
        std::fill_n(tile.lo, tile.num_rows, first);
        attend_keys(call, group, tile, first / call.k.panel_keys * call.k.panel_keys, stop);
        tile.num_ahead = -1;
      });
    }
    call.k.tile_end(tile);
  }
  zero_rows_between(call, group, head, row.begin, row.end);
}

}  // namespace tsp::cpu
