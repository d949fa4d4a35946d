// SPDX-License-Identifier: MIT
// score: packs the keys of a wave of KV heads, runs every query head's window rows against them in
// two parts, then adds the parts and pools. Waves bound the memory; nothing depends on the threads.
#include "cpu/ops.h"
#include "cpu/pool.h"

namespace tsp::cpu {
namespace {

constexpr size_t kPackBytes = size_t{32} << 20;
constexpr int32_t kPackKeys = 256;
constexpr int32_t kPoolColumns = 2048;
constexpr int32_t kParts = 2;  // of a head's window rows: twice as many items for the threads

struct Call {
  const tsp_score_params_t& p;
  const Kernels& k;
  int32_t dim;
  int32_t heads_per_kv;
  int64_t column_stride = 0;  // floats of one part's columns
  size_t panel_bytes = 0;
  size_t slot_bytes = 0;     // packed keys of the longest sequence
  int32_t slots = 0;         // KV heads in a wave
  size_t scratch_bytes = 0;  // of one thread
};

Call new_call(const tsp_context_t& ctx, const tsp_score_params_t& p) {
  const Kernels& k = *kernels_for(ctx, p.precision);
  Call call{p, k, static_cast<int32_t>(p.q.dim), static_cast<int32_t>(p.q.heads / p.k.heads)};
  const int32_t longest = longest_k(p.batch);
  call.column_stride = ceil_div(longest, 16) * int64_t{16};
  call.panel_bytes = k.k_panel_bytes(call.dim);
  call.slot_bytes =
      align64(static_cast<size_t>(ceil_div(longest, k.panel_keys)) * call.panel_bytes);
  const int64_t fit = call.slot_bytes == 0 ? 1 : static_cast<int64_t>(kPackBytes / call.slot_bytes);
  call.slots = static_cast<int32_t>(std::clamp<int64_t>(fit, 1, p.batch.num_seqs * p.k.heads));
  call.scratch_bytes = align64(k.score_scratch_bytes(call.dim, longest));
  return call;
}

size_t num_columns_floats(const Call& call) {
  return static_cast<size_t>(call.slots) * static_cast<size_t>(call.heads_per_kv * kParts) *
         static_cast<size_t>(call.column_stride);
}

/// A KV head of a sequence in its slot of the wave.
struct Slot {
  Seq seq;
  int32_t kv_head;
  int32_t prefix;
};

Slot slot_at(const Call& call, int64_t index) {
  const auto kv_heads = static_cast<int64_t>(call.p.k.heads);
  const Seq seq = seq_at(call.p.batch, static_cast<int32_t>(index / kv_heads));
  return {seq, static_cast<int32_t>(index % kv_heads), seq.prefix_len(call.p.window)};
}

void pack_keys(const Call& call, const Slot& slot, int32_t first, unsigned char* panels) {
  const tsp_tensor_t& view = call.p.k;
  PackArgs args;
  args.k = {view.data, view.dtype, call.dim, view.dim_stride};
  args.v_rows = nullptr;
  const int32_t end = std::min(first + kPackKeys, slot.seq.k_len);
  for (; first < end; first += call.k.panel_keys) {
    args.num_keys = std::min(call.k.panel_keys, end - first);
    for (int32_t i = 0; i < args.num_keys; ++i) {
      args.k_offset[i] = k_row_offset(view, slot.seq, first + i, slot.kv_head);
    }
    args.k_panel = panels + static_cast<size_t>(first / call.k.panel_keys) * call.panel_bytes;
    call.k.pack(args);
  }
}

/// One part of a head's window rows, kScoreRows at a time.
void score_part(const Call& call, const Slot& slot, int32_t head, int32_t part,
                const unsigned char* panels, float* columns, void* scratch) {
  const int32_t window = slot.seq.window(call.p.window);
  // Parts are whole micro-blocks of 6 rows.
  const int32_t middle = std::min(window, ceil_div(ceil_div(window, 2), 6) * 6);
  const int32_t end = part == 0 ? middle : window;
  ScoreTile tile;
  tile.q = {call.p.q.data, call.p.q.dtype, call.dim, call.p.q.dim_stride};
  tile.scale_log2 = call.p.scale * 1.4426950408889634f;
  tile.row_weight = 1.0f / static_cast<float>(window);
  tile.num_columns = slot.prefix;
  tile.k_panels = panels;
  tile.columns = columns;
  tile.scratch = scratch;
  tile.first = true;
  for (int32_t row = part == 0 ? 0 : middle; row < end; row += kScoreRows) {
    tile.num_rows = std::min(kScoreRows, end - row);
    for (int32_t r = 0; r < tile.num_rows; ++r) {
      const int32_t q_row = slot.seq.q_len - window + row + r;
      tile.q_offset[r] = q_row_offset(call.p.q, slot.seq, q_row, head);
      tile.hi[r] = slot.seq.q_pos() + q_row + 1;
    }
    call.k.score_tile(tile);
    tile.first = false;
  }
  if (tile.first) std::fill(columns, columns + slot.prefix, 0.0f);
}

}  // namespace

size_t score_workspace(const tsp_context_t& ctx, const tsp_score_params_t& p) {
  const Call call = new_call(ctx, p);
  return align64(static_cast<size_t>(call.slots) * call.slot_bytes) +
         align64(num_columns_floats(call) * sizeof(float)) +
         static_cast<size_t>(ctx.threads->size()) * call.scratch_bytes;
}

tsp_status_t score(tsp_context_t& ctx, const tsp_score_params_t& p) {
  const Call call = new_call(ctx, p);
  Workspace<> arena(p.workspace);
  auto* const packed = arena.take<unsigned char>(static_cast<size_t>(call.slots) * call.slot_bytes);
  auto* const columns = arena.take<float>(num_columns_floats(call));
  auto* const scratch =
      arena.take<unsigned char>(static_cast<size_t>(ctx.threads->size()) * call.scratch_bytes);
  const auto columns_of = [&](int64_t slot, int32_t head, int32_t part) {
    return columns + ((slot * call.heads_per_kv + head) * kParts + part) * call.column_stride;
  };
  const auto packed_of = [&](int64_t slot) {
    return packed + static_cast<size_t>(slot) * call.slot_bytes;
  };
  const int64_t num_slots = p.batch.num_seqs * p.k.heads;
  const int64_t pack_items = ceil_div(static_cast<int32_t>(call.column_stride), kPackKeys);
  const int64_t pool_items = ceil_div(static_cast<int32_t>(call.column_stride), kPoolColumns);
  for (int64_t begin = 0; begin < num_slots; begin += call.slots) {
    const int64_t count = std::min<int64_t>(call.slots, num_slots - begin);
    for_each_item(ctx, count * pack_items, [&](int64_t item, int32_t) {
      const Slot slot = slot_at(call, begin + item / pack_items);
      const auto first = static_cast<int32_t>(item % pack_items) * kPackKeys;
      if (slot.prefix <= 0 || first >= slot.seq.k_len) return;
      pack_keys(call, slot, first, packed_of(item / pack_items));
    });
    const int64_t per_slot = int64_t{call.heads_per_kv} * kParts;
    for_each_item(ctx, count * per_slot, [&](int64_t item, int32_t thread) {
      const Slot slot = slot_at(call, begin + item / per_slot);
      const auto local = static_cast<int32_t>(item % per_slot);
      if (slot.prefix <= 0) return;
      score_part(call, slot, slot.kv_head * call.heads_per_kv + local / kParts, local % kParts,
                 packed_of(item / per_slot),
                 columns_of(item / per_slot, local / kParts, local % kParts),
                 scratch + static_cast<size_t>(thread) * call.scratch_bytes);
    });
    for_each_item(ctx, count * call.heads_per_kv * pool_items, [&](int64_t item, int32_t) {
      const int64_t index = item / pool_items;
      const Slot slot = slot_at(call, begin + index / call.heads_per_kv);
      const auto head = static_cast<int32_t>(index % call.heads_per_kv);
      const auto first = static_cast<int32_t>(item % pool_items) * kPoolColumns;
      if (first >= slot.prefix) return;
      const int64_t column = score_offset(p.batch, p.window, slot.seq.index);
      float* const out = static_cast<float*>(p.scores.data) + column * p.scores.token_stride +
                         (slot.kv_head * call.heads_per_kv + head) * p.scores.head_stride;
      const float* const a = columns_of(index / call.heads_per_kv, head, 0);
      pool_columns(a, a + call.column_stride, slot.prefix, p.pool, first,
                   std::min(kPoolColumns, slot.prefix - first), out, p.scores.token_stride);
    });
  }
  return TSP_OK;
}

}  // namespace tsp::cpu
