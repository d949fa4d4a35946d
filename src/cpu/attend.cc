// SPDX-License-Identifier: MIT
// attend: which rows, which keys, in which order. A group is the query heads that read the same
// packed keys (one set of one KV head): K and V are packed once for it, straight from the index
// list. Groups are taken in waves that fit the packing buffer; a wave's keys are packed while the
// wave before it is computed. docs/kernels/attend_cpu.md has the reasons.
#include "cpu/attend_call.h"

namespace tsp::cpu {
namespace {

constexpr int32_t kPackKeys = 256;  // keys of one packing item

Rows rows_of(const tsp_tensor_t& view) {
  return {view.data, view.dtype, static_cast<int32_t>(view.dim), view.dim_stride};
}

}  // namespace

Tile new_tile(const Call& call, int32_t thread) {
  Tile tile;
  tile.q = rows_of(call.p.q);
  tile.num_rows = 0;
  tile.num_ahead = -1;
  tile.scale_log2 = call.scale_log2;
  tile.out = call.p.out.data;
  tile.out_dtype = call.p.out.dtype;
  tile.out_dim_stride = call.p.out.dim_stride;
  tile.lse = static_cast<float*>(call.p.lse.data);
  tile.scratch = call.scratch + static_cast<size_t>(thread) * call.scratch_bytes;
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

void attend_keys(const Call& call, const Group& group, const Tile& tile, int32_t begin,
                 int32_t end) {
  for (int32_t n0 = begin; n0 < end; n0 += call.k.block_keys) {
    const KeySpan span = {std::min(call.k.block_keys, end - n0), call.panels_at(group, n0),
                          call.values_at(group, n0)};
    call.k.tile_block(tile, n0, &span, 1);
  }
}

void pack_keys(const Call& call, const Group& group, int32_t first, int32_t count) {
  const Seq seq = seq_at(call.p.batch, group.seq);
  PackArgs args;
  args.k = rows_of(call.p.k);
  args.v = rows_of(call.p.v);
  for (int32_t key = first; key < first + count; key += call.k.panel_keys) {
    args.num_keys = std::min(call.k.panel_keys, first + count - key);
    for (int32_t i = 0; i < args.num_keys; ++i) {
      const int32_t token = group.position(key + i);
      args.k_offset[i] = k_row_offset(call.p.k, seq, token, group.kv_head);
      args.v_offset[i] = k_row_offset(call.p.v, seq, token, group.kv_head);
    }
    args.k_panel = group.panels + static_cast<size_t>(key / call.k.panel_keys) * call.panel_bytes;
    args.v_rows = group.values + static_cast<size_t>(key) * call.v_bytes;
    call.k.pack(args);
  }
}

namespace {

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

}  // namespace

void zero_rows_between(const Call& call, const Group& group, int32_t head, int32_t begin,
                       int32_t end) {
  if (group.list == nullptr || call.p.dropped != TSP_DROPPED_ZERO) return;
  const Seq seq = seq_at(call.p.batch, group.seq);
  int32_t position = begin == group.first_query ? seq.q_pos() : group.list[begin - 1] + 1;
  for (int32_t i = begin; i < end; ++i, ++position) {
    for (; position < group.list[i]; ++position) zero_row(call, seq, position - seq.q_pos(), head);
  }
  if (end != group.num_keys) return;
  for (; position < seq.k_len; ++position) zero_row(call, seq, position - seq.q_pos(), head);
}

namespace {

/// Rows of the group's compact positions [begin, end) of one head, and zeros for those between.
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
    attend_keys(call, group, tile, 0, end);
    call.k.tile_end(tile);
  }
  zero_rows_between(call, group, head, begin, end);
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
    wave.tile_items += group.num_tile_items();
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
  pack_keys(call, group, first, std::min(kPackKeys, group.num_keys - first));
}

/// Longest tile first, the heads of a tile one after the other (they read the same keys);
/// left-out rows, whose items are short, come after all others.
void run_tile_item(const Call& call, const Group* groups, const Wave& wave, int64_t item,
                   int32_t thread) {
  const Group& group = group_of(groups, wave, item, &Group::first_tile_item);
  const auto local = static_cast<int32_t>(item - group.first_tile_item);
  if (group.left_out) return attend_left_out(call, group, local, thread);
  if (group.by_blocks) {
    return attend_query_block(call, group, group.first_head + local % group.num_heads,
                              group.num_tiles - 1 - local / group.num_heads, thread);
  }
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

Call new_call(const tsp_context_t& ctx, const tsp_attend_params_t& p, const Kernels& k) {
  const auto dim = static_cast<int32_t>(p.q.dim);
  const size_t tile_bytes = align64(k.tile_scratch_bytes(dim));
  Call call{p,
            k,
            p.scale * 1.4426950408889634f,
            dim,
            k.k_panel_bytes(dim),
            k.v_row_bytes(dim),
            nullptr,
            tile_bytes,
            tile_bytes,
            ctx.threads->size()};
  call.scratch_bytes += side_bytes(call);
  return call;
}

}  // namespace

size_t attend_workspace(const tsp_context_t& ctx, const tsp_attend_params_t& p) {
  const Kernels& k = *kernels_for(ctx, p.precision);
  const Call call = new_call(ctx, p, k);
  return align64(max_groups(p) * sizeof(Group)) + align64(pack_buffer(p, k).bytes) +
         static_cast<size_t>(ctx.threads->size()) * call.scratch_bytes;
}

tsp_status_t attend(tsp_context_t& ctx, const tsp_attend_params_t& p) {
  const Kernels& k = *kernels_for(ctx, p.precision);
  Call call = new_call(ctx, p, k);
  Workspace<> arena(p.workspace);
  auto* const groups = arena.take<Group>(max_groups(p));
  const PackBuffer size = pack_buffer(p, k);
  auto* const buffer = arena.take<unsigned char>(size.bytes);
  call.scratch =
      arena.take<unsigned char>(static_cast<size_t>(ctx.threads->size()) * call.scratch_bytes);

  const int32_t num_groups = list_groups(p, k, groups);
  attend_waves(ctx, call, groups, num_groups, buffer, size);
  return TSP_OK;
}

}  // namespace tsp::cpu
