// SPDX-License-Identifier: MIT
// attend: which rows, which keys, in which order. A group is the query heads that read the same
// packed keys (one set of one KV head): K and V are packed once for it, straight from the index
// list. Groups are taken in waves that fit the packing buffer; a wave's keys are packed while the
// wave before it is computed. docs/kernels/attend_cpu.md has the reasons.
#include "cpu/attend_groups.h"
#include "cpu/ops.h"

namespace tsp::cpu {
namespace {

constexpr int32_t kPackKeys = 256;   // keys of one packing item
constexpr int32_t kLocalRows = 128;  // query positions of one item of left-out rows

/// What every item of one call shares.
struct Call {
  const tsp_attend_params_t& p;
  const Kernels& k;
  float scale_log2;
  int32_t dim;
  size_t panel_bytes;
  size_t v_bytes;
  unsigned char* scratch;  // [threads, scratch_bytes]
  size_t scratch_bytes;
  size_t tile_bytes;  // part of the scratch that the tile takes; local keys lie behind it

  unsigned char* thread_scratch(int32_t thread) const {
    return scratch + static_cast<size_t>(thread) * scratch_bytes;
  }
};

Rows rows_of(const tsp_tensor_t& view) {
  return {view.data, view.dtype, static_cast<int32_t>(view.dim), view.dim_stride};
}

Tile new_tile(const Call& call, int32_t thread) {
  Tile tile;
  tile.q = rows_of(call.p.q);
  tile.num_rows = 0;
  tile.scale_log2 = call.scale_log2;
  tile.out = call.p.out.data;
  tile.out_dtype = call.p.out.dtype;
  tile.out_dim_stride = call.p.out.dim_stride;
  tile.lse = static_cast<float*>(call.p.lse.data);
  tile.scratch = call.thread_scratch(thread);
  return tile;
}

void add_row(const Call& call, Tile& tile, const Seq& seq, int32_t q_row, int32_t head, int32_t lo,
             int32_t hi) {
  const int32_t r = tile.num_rows++;
  tile.q_offset[r] = q_row_offset(call.p.q, seq, q_row, head);
  tile.out_offset[r] = q_row_offset(call.p.out, seq, q_row, head);
  if (tile.lse != nullptr) tile.lse_offset[r] = q_row_offset(call.p.lse, seq, q_row, head);
  tile.lo[r] = lo;
  tile.hi[r] = hi;
}

/// Keys first .. first + count - 1 of the group (first a multiple of panel_keys).
void pack_keys(const Call& call, const Seq& seq, const int32_t* list, int32_t kv_head,
               int32_t first, int32_t count, unsigned char* panels, unsigned char* values) {
  PackArgs args;
  args.k = rows_of(call.p.k);
  args.v = rows_of(call.p.v);
  for (int32_t done = 0; done < count; done += call.k.panel_keys) {
    args.num_keys = std::min(call.k.panel_keys, count - done);
    for (int32_t i = 0; i < args.num_keys; ++i) {
      const int32_t token = list == nullptr ? first + done + i : list[first + done + i];
      args.k_offset[i] = k_row_offset(call.p.k, seq, token, kv_head);
      args.v_offset[i] = k_row_offset(call.p.v, seq, token, kv_head);
    }
    args.k_panel = panels + static_cast<size_t>(done / call.k.panel_keys) * call.panel_bytes;
    args.v_rows = values + static_cast<size_t>(done) * call.v_bytes;
    call.k.pack(args);
  }
}

void zero_row(const Call& call, const Seq& seq, int32_t q_row, int32_t head) {
  const tsp_tensor_t& out = call.p.out;
  const int64_t bytes = out.dtype == TSP_F32 ? 4 : 2;
  char* const row = static_cast<char*>(out.data) + q_row_offset(out, seq, q_row, head) * bytes;
  if (out.dim_stride == 1) {
    std::fill(row, row + out.dim * bytes, 0);
  } else {
    for (int64_t d = 0; d < out.dim; ++d) {
      char* const at = row + d * out.dim_stride * bytes;
      std::fill(at, at + bytes, 0);
    }
  }
  if (call.p.lse.data != nullptr) {
    static_cast<float*>(call.p.lse.data)[q_row_offset(call.p.lse, seq, q_row, head)] =
        -__builtin_inff();
  }
}

/// Rows of the group's compact positions [begin, end) of one head, and zeros for the rows that were
/// left out before each of them (after the last one too when end is the list's).
void attend_tile(const Call& call, const Group& group, int32_t head, int32_t begin, int32_t end,
                 int32_t thread) {
  const Seq seq = seq_at(call.p.batch, group.seq);
  Tile tile = new_tile(call, thread);
  for (int32_t i = begin; i < end; ++i) {
    const int32_t position = group.list == nullptr ? i : group.list[i];
    add_row(call, tile, seq, position - seq.q_pos(), head, 0, i + 1);
  }
  if (tile.num_rows > 0) {
    call.k.tile_begin(tile);
    for (int32_t n0 = 0; n0 < end; n0 += call.k.block_keys) {
      call.k.tile_block(
          tile, n0, std::min(call.k.block_keys, end - n0),
          group.panels + static_cast<size_t>(n0 / call.k.panel_keys) * call.panel_bytes,
          group.values + static_cast<size_t>(n0) * call.v_bytes);
    }
    call.k.tile_end(tile);
  }
  if (group.list == nullptr || call.p.dropped != TSP_DROPPED_ZERO) return;
  int32_t position = begin == group.first_query ? seq.q_pos() : group.list[begin - 1] + 1;
  for (int32_t i = begin; i < end; ++i, ++position) {
    for (; position < group.list[i]; ++position) zero_row(call, seq, position - seq.q_pos(), head);
  }
  if (end != group.num_keys) return;
  for (; position < seq.k_len; ++position) zero_row(call, seq, position - seq.q_pos(), head);
}

/// The keys that the rows of a tile see between lo and hi, packed as they are needed.
void attend_span(const Call& call, const Seq& seq, int32_t kv_head, const Tile& tile,
                 int32_t thread) {
  unsigned char* const panels = call.thread_scratch(thread) + call.tile_bytes;
  unsigned char* const values =
      panels + static_cast<size_t>(call.k.block_keys / call.k.panel_keys) * call.panel_bytes;
  const int32_t end = tile.hi[tile.num_rows - 1];
  for (int32_t n0 = tile.lo[0] / call.k.panel_keys * call.k.panel_keys; n0 < end;
       n0 += call.k.block_keys) {
    const int32_t count = std::min(call.k.block_keys, end - n0);
    pack_keys(call, seq, nullptr, kv_head, n0, count, panels, values);
    call.k.tile_block(tile, n0, count, panels, values);
  }
}

/// Attention of a tile over the first `sink` keys and the last `band` keys of each row.
void attend_local_tile(const Call& call, const Seq& seq, int32_t kv_head, const Tile& tile,
                       int32_t thread) {
  call.k.tile_begin(tile);
  if (call.p.sink > 0 && tile.lo[tile.num_rows - 1] > 0) {
    Tile sinks = tile;  // on the same scratch
    for (int32_t r = 0; r < tile.num_rows; ++r) {
      sinks.lo[r] = 0;
      sinks.hi[r] = std::min(call.p.sink, tile.lo[r]);
    }
    attend_span(call, seq, kv_head, sinks, thread);
  }
  attend_span(call, seq, kv_head, tile, thread);
  call.k.tile_end(tile);
}

/// The rows that a head left out, among kLocalRows query positions.
void attend_left_out(const Call& call, const Group& group, int32_t head, int32_t first_row,
                     int32_t thread) {
  const Seq seq = seq_at(call.p.batch, group.seq);
  const int32_t end_row = std::min(first_row + kLocalRows, seq.q_len);
  const int32_t* kept =
      std::lower_bound(group.list, group.list + group.num_keys, first_row + seq.q_pos());
  const int32_t* const kept_end = group.list + group.num_keys;
  Tile tile = new_tile(call, thread);
  for (int32_t q_row = first_row; q_row < end_row; ++q_row) {
    const int32_t position = q_row + seq.q_pos();
    if (kept != kept_end && *kept == position) {
      ++kept;
      continue;
    }
    add_row(call, tile, seq, q_row, head, std::max(0, position - call.p.band + 1), position + 1);
    if (tile.num_rows == kTileRows) {
      attend_local_tile(call, seq, group.kv_head, tile, thread);
      tile.num_rows = 0;
    }
  }
  if (tile.num_rows > 0) attend_local_tile(call, seq, group.kv_head, tile, thread);
}

/// Groups [begin, end) whose packed keys share a buffer.
struct Wave {
  int32_t begin = 0;
  int32_t end = 0;
  int64_t pack_items = 0;
  int64_t tile_items = 0;
};

Wave plan_wave(const Call& call, Group* groups, int32_t num_groups, int32_t begin,
               unsigned char* buffer, size_t buffer_bytes) {
  Wave wave{begin, begin};
  size_t used = 0;
  for (int32_t g = begin; g < num_groups; ++g, ++wave.end) {
    Group& group = groups[g];
    const auto num_panels = static_cast<size_t>(ceil_div(group.num_keys, call.k.panel_keys));
    const size_t panels_bytes = num_panels * call.panel_bytes;
    const size_t bytes =
        panels_bytes + num_panels * static_cast<size_t>(call.k.panel_keys) * call.v_bytes;
    if (g > begin && used + bytes > buffer_bytes) break;
    group.panels = buffer + used;
    group.values = group.panels + panels_bytes;
    group.first_pack_item = wave.pack_items;
    group.first_tile_item = wave.tile_items;
    wave.pack_items += ceil_div(group.num_keys, kPackKeys);
    wave.tile_items += int64_t{group.num_tiles()} * group.num_heads;
    used += bytes;
  }
  return wave;
}

/// The group of an item: the last whose first item is not behind it.
const Group& group_of(const Group* groups, const Wave& wave, int64_t item,
                      int64_t Group::*first_item) {
  const Group* const it = std::upper_bound(
      groups + wave.begin, groups + wave.end, item,
      [first_item](int64_t value, const Group& group) { return value < group.*first_item; });
  return *(it - 1);
}

void run_pack_item(const Call& call, const Group* groups, const Wave& wave, int64_t item) {
  const Group& group = group_of(groups, wave, item, &Group::first_pack_item);
  const auto first = static_cast<int32_t>(item - group.first_pack_item) * kPackKeys;
  pack_keys(call, seq_at(call.p.batch, group.seq), group.list, group.kv_head, first,
            std::min(kPackKeys, group.num_keys - first),
            group.panels + static_cast<size_t>(first / call.k.panel_keys) * call.panel_bytes,
            group.values + static_cast<size_t>(first) * call.v_bytes);
}

/// Longest tile first, the heads of a tile one after the other (they read the same keys).
void run_tile_item(const Call& call, const Group* groups, const Wave& wave, int64_t item,
                   int32_t thread) {
  const Group& group = group_of(groups, wave, item, &Group::first_tile_item);
  const auto local = static_cast<int32_t>(item - group.first_tile_item);
  const int32_t end = group.num_keys - local / group.num_heads * kTileRows;
  attend_tile(call, group, group.first_head + local % group.num_heads,
              std::max(group.first_query, end - kTileRows), end, thread);
}

void attend_waves(tsp_context_t& ctx, const Call& call, Group* groups, int32_t num_groups,
                  unsigned char* buffer, const PackBuffer& size) {
  const size_t half = size.double_buffered ? size.bytes / 2 : size.bytes;
  Wave next = plan_wave(call, groups, num_groups, 0, buffer, half);
  if (!size.double_buffered) {
    while (next.begin < next.end) {
      for_each_item(ctx, next.pack_items,
                    [&](int64_t item, int32_t) { run_pack_item(call, groups, next, item); });
      for_each_item(ctx, next.tile_items, [&](int64_t item, int32_t thread) {
        run_tile_item(call, groups, next, item, thread);
      });
      next = plan_wave(call, groups, num_groups, next.end, buffer, half);
    }
    return;
  }
  for_each_item(ctx, next.pack_items,
                [&](int64_t item, int32_t) { run_pack_item(call, groups, next, item); });
  for (bool odd = true; next.begin < next.end; odd = !odd) {
    const Wave now = next;
    next = plan_wave(call, groups, num_groups, now.end, odd ? buffer + half : buffer, half);
    for_each_item(ctx, next.pack_items + now.tile_items, [&](int64_t item, int32_t thread) {
      if (item < next.pack_items) {
        run_pack_item(call, groups, next, item);
      } else {
        run_tile_item(call, groups, now, item - next.pack_items, thread);
      }
    });
  }
}

void attend_all_left_out(tsp_context_t& ctx, const Call& call, Group* groups, int32_t num_groups) {
  int64_t num_items = 0;
  for (int32_t g = 0; g < num_groups; ++g) {
    Group& group = groups[g];
    group.first_tile_item = num_items;
    if (group.list == nullptr) continue;
    const Seq seq = seq_at(call.p.batch, group.seq);
    num_items += int64_t{ceil_div(seq.q_len, kLocalRows)} * group.num_heads;
  }
  const Wave all{0, num_groups};
  for_each_item(ctx, num_items, [&](int64_t item, int32_t thread) {
    const Group& group = group_of(groups, all, item, &Group::first_tile_item);
    const auto local = static_cast<int32_t>(item - group.first_tile_item);
    attend_left_out(call, group, group.first_head + local % group.num_heads,
                    local / group.num_heads * kLocalRows, thread);
  });
}

Call new_call(const tsp_attend_params_t& p, const Kernels& k) {
  const auto dim = static_cast<int32_t>(p.q.dim);
  Call call{
      p,       k, p.scale * 1.4426950408889634f,     dim, k.k_panel_bytes(dim), k.v_row_bytes(dim),
      nullptr, 0, align64(k.tile_scratch_bytes(dim))};
  call.scratch_bytes = call.tile_bytes;
  if (p.dropped == TSP_DROPPED_LOCAL && p.selected.indices != nullptr) {
    call.scratch_bytes += static_cast<size_t>(k.block_keys / k.panel_keys) * call.panel_bytes +
                          static_cast<size_t>(k.block_keys) * call.v_bytes;
  }
  call.scratch_bytes = align64(call.scratch_bytes);
  return call;
}

}  // namespace

size_t attend_workspace(const tsp_context_t& ctx, const tsp_attend_params_t& p) {
  const Kernels& k = *kernels_for(ctx, p.precision);
  const Call call = new_call(p, k);
  return align64(max_groups(p) * sizeof(Group)) + align64(pack_buffer(p, k).bytes) +
         static_cast<size_t>(ctx.threads->size()) * call.scratch_bytes;
}

tsp_status_t attend(tsp_context_t& ctx, const tsp_attend_params_t& p) {
  const Kernels& k = *kernels_for(ctx, p.precision);
  Call call = new_call(p, k);
  Arena arena(p.workspace);
  auto* const groups = arena.take<Group>(max_groups(p));
  const PackBuffer size = pack_buffer(p, k);
  auto* const buffer = arena.take<unsigned char>(size.bytes);
  call.scratch =
      arena.take<unsigned char>(static_cast<size_t>(ctx.threads->size()) * call.scratch_bytes);

  const int32_t num_groups = list_groups(p, groups);
  attend_waves(ctx, call, groups, num_groups, buffer, size);
  if (p.selected.indices != nullptr && p.dropped == TSP_DROPPED_LOCAL) {
    attend_all_left_out(ctx, call, groups, num_groups);
  }
  return TSP_OK;
}

}  // namespace tsp::cpu
