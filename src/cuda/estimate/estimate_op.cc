// SPDX-License-Identifier: MIT
// The table's estimate: one sequence after the other. Logits are the large part of the workspace,
// so heads and query blocks go through it in waves.
#include <algorithm>

#include "cuda/estimate/estimate_run.h"
#include "cuda/ops.h"

namespace tsp::cuda {
namespace {

constexpr int64_t kWaveFloats = int64_t{16} << 20;  // of logits
constexpr int64_t kMapFloats = int64_t{16} << 20;   // flexprefill: masses of all query blocks
constexpr float kLog2E = 1.4426950408889634f;

int32_t ceil_div(int64_t a, int64_t b) { return static_cast<int32_t>((a + b - 1) / b); }

/// How a sequence is cut into launches.
struct Waves {
  bool lines, flex, means;
  RowsOf map_rows;
  int32_t sets;       // of a wave
  int32_t blocks;     // query blocks of a wave; flexprefill: all
  int32_t per_block;  // rows of a query block
  int32_t part;       // kGroups: key groups of a part
  int32_t parts_of_block;
  int64_t stride;
  int32_t line_heads;  // heads of a wave of lines
  int32_t line_rows;
  int32_t row_tiles, col_tiles;  // of lines
};

/// Floats of a head's lines: sums of its rows, columns, diagonals.
int64_t line_floats(const Waves& w) {
  return int64_t{w.col_tiles} * (2 * w.line_rows + w.row_tiles * 3 * kProductTile);
}

Waves plan(const EstimateArgs& a) {
  Waves w{};
  w.flex = a.kind == TSP_PATTERN_FLEXPREFILL;
  w.lines = w.flex || a.kind == TSP_PATTERN_MINFERENCE;
  w.means = w.flex || a.kind == TSP_PATTERN_POOLED;
  const bool groups = a.kind == TSP_PATTERN_XATTENTION;
  w.map_rows = groups                        ? RowsOf::kGroups
               : a.kind == TSP_PATTERN_FLASH ? RowsOf::kFlash
                                             : RowsOf::kMeans;
  w.per_block = w.part = w.parts_of_block = 1;
  w.stride = a.key_blocks;
  if (groups) {
    w.per_block = a.block / a.stride;
    w.part = w.per_block % kWidePart == 0 ? kWidePart : w.per_block;
    w.parts_of_block = w.per_block / w.part;
    const int32_t parts = ceil_div(ceil_div(a.k_len, a.stride), w.part);
    w.stride = int64_t{ceil_div(parts, kWideParts)} * kWideParts;
  }
  const int64_t block_floats = a.heads_per_set() * w.per_block * w.stride;  // of a set
  w.sets = std::min(a.num_sets, kThresholdsInLaunch);
  if (w.flex) {
    const int64_t map = int64_t{a.query_blocks} * std::max<int64_t>(block_floats, a.key_blocks);
    w.sets = static_cast<int32_t>(std::clamp<int64_t>(kMapFloats / map, 1, w.sets));
    w.blocks = a.query_blocks;
  } else {
    w.sets = static_cast<int32_t>(std::clamp<int64_t>(
        kWaveFloats / (block_floats * std::min(a.query_blocks, kProductTile)), 1, w.sets));
    const int64_t fit = std::max<int64_t>(1, kWaveFloats / (block_floats * w.sets));
    // Whole tiles of rows, where that is possible.
    const int64_t whole = std::max(1, kProductTile / w.per_block);
    w.blocks = static_cast<int32_t>(
        std::min<int64_t>(a.query_blocks, fit > whole ? fit / whole * whole : fit));
  }
  w.line_rows = std::min(a.q_len, w.flex ? a.block : 64);
  w.row_tiles = ceil_div(w.line_rows, kProductTile);
  w.col_tiles = ceil_div(a.k_len, kProductTile);
  w.line_heads = static_cast<int32_t>(
      std::clamp<int64_t>(kWaveFloats / line_floats(w), 1, int64_t{w.sets} * a.heads_per_set()));
  return w;
}

EstimateArgs make_args(const EstimateCall& call, const Seq& seq) {
  const tsp_estimate_params_t& p = call.params;
  EstimateArgs a{};
  a.q = q_rows(p.q, seq);
  a.k = k_rows(p.k, seq);
  a.sets = call.sets;
  a.out = call.out;
  a.q_len = seq.q_len;
  a.k_len = seq.k_len;
  a.head_dim = static_cast<int32_t>(p.q.dim);
  a.num_heads = static_cast<int32_t>(p.q.heads);
  a.num_kv_heads = static_cast<int32_t>(p.k.heads);
  a.num_sets = p.blocks.num_sets;
  const int32_t lists = call.num_lists == 0 ? 1 : call.num_lists;
  a.sets.heads_per_set = a.num_heads / lists;
  a.units = std::max(lists, a.num_kv_heads);
  a.bf16 = p.q.dtype == TSP_BF16;
  a.scale_log2 = p.scale * kLog2E;
  const tsp_pattern_t& t = p.pattern;
  a.kind = t.kind;
  a.block = t.block;
  a.stride = t.stride;
  a.alpha = t.alpha;
  a.gamma = t.gamma;
  a.tau = t.tau;
  a.min_budget = t.min_budget;
  a.vertical = t.vertical;
  a.slash = t.slash;
  a.sink_blocks = t.sink_blocks;
  a.local_blocks = t.local_blocks;
  a.last_blocks = t.last_blocks;
  a.key_blocks = ceil_div(seq.k_len, t.block);
  a.query_blocks = ceil_div(seq.q_len, t.block);
  return a;
}

void place(EstimateArgs& a, const Waves& w, Scratch& scratch) {
  const int64_t sets = w.sets, dim = a.head_dim;
  a.cuts = scratch.take<BlockCut>(a.num_heads);
  if (w.means) {
    a.key_means = scratch.take<float>(int64_t{a.units} * a.key_blocks * dim);
    a.query_means = scratch.take<float>(int64_t{a.num_heads} * a.query_blocks * dim);
  }
  if (a.kind == TSP_PATTERN_FLASH) {
    a.key_parts = scratch.take<uint16_t>(int64_t{a.units} * a.key_blocks * 2 * dim);
  }
  int64_t logits = 0;
  if (!w.lines || w.flex) {
    logits = sets * a.heads_per_set() * w.blocks * w.per_block * w.stride;
    a.mass = scratch.take<float>(sets * w.blocks * a.key_blocks);
  }
  if (w.lines) {
    const int64_t heads = w.line_heads;
    a.line_stats = scratch.take<float2>(heads * w.line_rows * w.col_tiles);
    a.line_shift = scratch.take<float>(heads * w.line_rows);
    a.head_columns = scratch.take<float>(heads * w.row_tiles * a.k_len);
    a.diagonals = scratch.take<float>(heads * w.row_tiles * w.col_tiles * 2 * kProductTile);
    a.columns = scratch.take<float>(sets * a.k_len);
    a.slashes = scratch.take<float>(sets * a.k_len);
    a.choices = scratch.take<LineChoice>(sets);
  }
  if (a.kind == TSP_PATTERN_MINFERENCE) {
    a.slash_rank = scratch.take<int32_t>(sets * (int64_t{a.k_len} + 1));
  }
  if (w.flex) {
    a.last_means = scratch.take<float>(a.num_heads * dim);
    a.guess = scratch.take<float>(sets * a.key_blocks);
    a.sums = scratch.take<float>(sets * 2 * a.key_blocks);
    a.line_blocks = scratch.take<uint8_t>(sets * 2 * a.key_blocks);
  }
  a.logits = scratch.take<float>(logits);
}

tsp_status_t run_means(const EstimateArgs& a, const Waves& w, cudaStream_t stream) {
  if (w.flex) return launch_means(a, MeanOf::kLastQueries, stream);
  if (w.means) return launch_means(a, MeanOf::kQueries, stream);
  return a.kind == TSP_PATTERN_FLASH ? launch_means(a, MeanOf::kKeys, stream) : TSP_OK;
}

LogitRows map_rows(const EstimateArgs& a, const Waves& w, const MapPart& part) {
  return {w.map_rows,
          part.first_set * a.heads_per_set(),
          part.num_sets * a.heads_per_set(),
          part.first_block * w.per_block,
          part.num_blocks * w.per_block,
          w.part,
          w.parts_of_block,
          w.stride};
}

/// Masses of the part's query blocks.
tsp_status_t run_map(const EstimateCall& call, const EstimateArgs& a, const Waves& w,
                     const MapPart& part, cudaStream_t stream) {
  const LogitRows rows = map_rows(a, w, part);
  const auto launch_sums = [&] {
    if (w.map_rows == RowsOf::kMeans) return launch_mean_products(a, rows, stream);
    if (w.map_rows == RowsOf::kFlash) return launch_joint_sums(a, rows, stream);
    return call.warpgroups && w.part == kWidePart
               ? launch_wide_group_sums(a, rows, call.num_sms, stream)
               : launch_group_sums(a, rows, stream);
  };
  TSP_RETURN_IF_ERROR(launch_sums());
  return launch_mass(a, rows, part, stream);
}

tsp_status_t run_lines(const EstimateCall& call, const EstimateArgs& a, const Waves& w,
                       const MapPart& part, cudaStream_t stream) {
  const int32_t begin = part.first_set * a.heads_per_set();
  const int32_t end = begin + part.num_sets * a.heads_per_set();
  for (int32_t head = begin; head < end; head += w.line_heads) {
    const LineRows rows{head, std::min(w.line_heads, end - head), w.line_rows, w.row_tiles,
                        w.col_tiles};
    TSP_RETURN_IF_ERROR(launch_lines(a, rows, part.first_set, stream));
  }
  if (w.flex) {
    MapPart one = part;
    one.num_blocks = 1;
    LogitRows rows = map_rows(a, w, one);
    rows.of = RowsOf::kGuess;
    TSP_RETURN_IF_ERROR(launch_mean_products(a, rows, stream));
    TSP_RETURN_IF_ERROR(launch_mass(a, rows, one, stream));
    TSP_RETURN_IF_ERROR(run_map(call, a, w, part, stream));
  }
  return launch_choose_lines(a, part, call.warpgroups, stream);
}

MapPart part_of(const EstimateCall& call, const EstimateArgs& a, const Waves& w, int32_t set) {
  const tsp_pattern_t& pattern = call.params.pattern;
  MapPart part{};
  part.first_set = set;
  part.num_sets = std::min(w.sets, a.num_sets - set);
  part.num_blocks = a.query_blocks;
  for (int32_t s = 0; s < part.num_sets; ++s) {
    part.thresholds[s] =
        pattern.thresholds == nullptr ? pattern.threshold : pattern.thresholds[set + s];
  }
  return part;
}

BlockLists lists_of(const tsp_block_sets_t& s, int32_t b) {
  BlockLists out;
  out.blocks = s.blocks + b * s.seq_stride;
  out.counts = s.counts + b * s.count_seq_stride;
  if (s.columns != nullptr) {
    out.columns = s.columns + b * s.column_seq_stride;
    out.num_columns = s.num_columns + int64_t{b} * s.num_sets;
  }
  out.row_stride = s.row_stride;
  out.set_stride = s.set_stride;
  out.count_stride = s.count_set_stride;
  out.column_stride = s.column_set_stride;
  return out;
}

EstimateCall call_of(const tsp_context_t& ctx, const tsp_estimate_params_t& p, const Seq& seq) {
  const State& state = state_of(ctx);
  const bool lists = p.selected.indices != nullptr;
  return {p,
          make_sets(p.selected, seq, p.q.heads),
          lists ? p.selected.num_sets : 0,
          lists_of(p.blocks, seq.index),
          state.warpgroups,
          state.num_sms};
}

tsp_status_t check_memory(const tsp_context_t& ctx, const tsp_estimate_params_t& p) {
  TSP_RETURN_IF_ERROR(check_stream(ctx));
  TSP_RETURN_IF_ERROR(check_rows(ctx, "q", p.q, true));
  TSP_RETURN_IF_ERROR(check_rows(ctx, "k", p.k, true));
  TSP_RETURN_IF_ERROR(check_set_memory(ctx, "selected", p.selected));
  TSP_RETURN_IF_ERROR(check_pointer(ctx, "blocks.blocks", p.blocks.blocks));
  TSP_RETURN_IF_ERROR(check_pointer(ctx, "blocks.counts", p.blocks.counts));
  if (p.blocks.columns != nullptr) {
    TSP_RETURN_IF_ERROR(check_pointer(ctx, "blocks.columns", p.blocks.columns));
    TSP_RETURN_IF_ERROR(check_pointer(ctx, "blocks.num_columns", p.blocks.num_columns));
  }
  return check_pointer(ctx, "workspace", p.workspace);
}

}  // namespace

size_t estimate_scratch_bytes(const EstimateCall& call, const Seq& seq) {
  if (seq.q_len == 0) return 0;
  EstimateArgs a = make_args(call, seq);
  Scratch scratch(nullptr);
  place(a, plan(a), scratch);
  return scratch.used();
}

tsp_status_t run_estimate(const EstimateCall& call, const Seq& seq, void* scratch_memory,
                          cudaStream_t stream) {
  if (seq.q_len == 0) return TSP_OK;
  EstimateArgs a = make_args(call, seq);
  const Waves w = plan(a);
  Scratch scratch(scratch_memory);
  place(a, w, scratch);
  TSP_RETURN_IF_ERROR(launch_cuts(a, stream));
  TSP_RETURN_IF_ERROR(run_means(a, w, stream));
  for (int32_t set = 0; set < a.num_sets; set += w.sets) {
    MapPart part = part_of(call, a, w, set);
    if (w.lines) {
      TSP_RETURN_IF_ERROR(run_lines(call, a, w, part, stream));
      continue;
    }
    for (int32_t m = 0; m < a.query_blocks; m += w.blocks) {
      part.first_block = m;
      part.num_blocks = std::min(w.blocks, a.query_blocks - m);
      TSP_RETURN_IF_ERROR(run_map(call, a, w, part, stream));
      TSP_RETURN_IF_ERROR(launch_choose_map(a, part, stream));
    }
  }
  return TSP_OK;
}

tsp_status_t check_estimate(const tsp_context_t& ctx, const tsp_estimate_params_t& p) {
  TSP_RETURN_IF_ERROR(check_rows(ctx, "q", p.q, false));
  TSP_RETURN_IF_ERROR(check_rows(ctx, "k", p.k, false));
  return check_same_dtype("k", p.k, p.q);
}

size_t estimate_workspace(const tsp_context_t& ctx, const tsp_estimate_params_t& p) {
  size_t bytes = 0;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    bytes = std::max(bytes, estimate_scratch_bytes(call_of(ctx, p, seq), seq));
  }
  return bytes;
}

tsp_status_t estimate(tsp_context_t& ctx, const tsp_estimate_params_t& p) {
  const DeviceGuard guard(ctx);
  TSP_RETURN_IF_ERROR(check_memory(ctx, p));
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    TSP_RETURN_IF_ERROR(run_estimate(call_of(ctx, p, seq), seq, p.workspace, stream_of(ctx)));
  }
  return TSP_OK;
}

}  // namespace tsp::cuda
