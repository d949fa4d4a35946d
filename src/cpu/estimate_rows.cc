// SPDX-License-Identifier: MIT
#include "cpu/estimate_rows.h"

#include <cstring>

namespace tsp::cpu {
namespace {

constexpr int32_t kRowsAtOnce = 128;  // of a mean

int64_t entry_offset(const tsp_tensor_t& view, const BlockRows& rows, const Seq& seq, bool queries,
                     int32_t head, int32_t entry) {
  const int32_t position = rows.position(entry);
  return queries ? q_row_offset(view, seq, position - seq.q_pos(), head)
                 : k_row_offset(view, seq, position, head);
}

/// Mean over the entries begin .. end - 1.
void mean_of_rows(const EstimateCall& call, const KeyUnit& unit, bool queries, int32_t head,
                  int32_t begin, int32_t end, float* mean) {
  const tsp_tensor_t& view = queries ? call.p.q : call.p.k;
  const Rows rows = {view.data, view.dtype, call.dim, view.dim_stride};
  std::fill_n(mean, call.dim, 0.0f);
  int64_t offset[kRowsAtOnce];
  for (int32_t first = begin; first < end; first += kRowsAtOnce) {
    const int32_t count = std::min(kRowsAtOnce, end - first);
    for (int32_t i = 0; i < count; ++i) {
      offset[i] = entry_offset(view, unit.rows, unit.seq, queries, head, first + i);
    }
    call.k.sum_rows(rows, offset, count, mean);
  }
  const float factor = 1.0f / static_cast<float>(end - begin);
  for (int32_t d = 0; d < call.dim; ++d) mean[d] *= factor;
}

}  // namespace

EstimateCall::EstimateCall(const tsp_context_t& ctx, const tsp_estimate_params_t& params)
    : p(params),
      k(*kernels_for(ctx, params.precision)),
      dim(static_cast<int32_t>(params.q.dim)),
      longest(longest_k(params.batch)),
      units(static_cast<int32_t>(params.k.heads)) {
  if (p.selected.indices != nullptr) units = std::max(units, p.selected.num_sets);
  groups = std::min(units, p.blocks.num_sets);
  map_bytes = has_map() ? source_bytes(map_keys()) : 0;
  unit_bytes = map_bytes + (has_lines(p.pattern) ? source_bytes(Source::kEntries) : 0);
  mean_floats = std::max(kMaxPanelKeys, kEstimateRows) * dim;
}

KeyUnit EstimateCall::unit(int32_t b, int32_t index) const {
  const Seq seq = seq_at(p.batch, b);
  const int32_t set = p.selected.indices == nullptr ? 0 : index / (units / p.selected.num_sets);
  return {seq,
          {entries_of(p.selected, seq, set), p.pattern.block},
          index / (units / static_cast<int32_t>(p.k.heads))};
}

void pack_panel(const EstimateCall& call, const KeyUnit& unit, Source source, int32_t index,
                unsigned char* panels, float* means) {
  const tsp_tensor_t& view = call.p.k;
  const BlockRows& rows = unit.rows;
  const int32_t step = call.step(source);
  const int32_t first = index * call.k.panel_keys;
  const int32_t count = std::min(call.k.panel_keys, ceil_div(rows.count, step) - first);
  if (count <= 0) return;
  unsigned char* const panel = panels + static_cast<size_t>(index) * call.panel_bytes(source);
  PackArgs args;
  args.v_rows = nullptr;
  if (source == Source::kMeans) {
    args.k = {means, TSP_F32, call.dim, 1};
    for (int32_t i = 0; i < count; ++i) {
      const int32_t begin = (first + i) * step;
      args.k_offset[i] = int64_t{i} * call.dim;
      mean_of_rows(call, unit, false, unit.kv_head, begin, std::min(begin + step, rows.count),
                   means + args.k_offset[i]);
    }
    args.num_keys = count;
    args.k_panel = panel;
    call.k.pack(args);
    return;
  }
  args.k = {view.data, view.dtype, call.dim, view.dim_stride};
  const size_t segment_bytes = call.k.k_panel_bytes(call.dim);
  for (int32_t t = 0; t < call.segments(source); ++t) {
    // The last group may lack this entry: a key of zeros.
    const int32_t there = (first + count - 1) * step + t < rows.count ? count : count - 1;
    args.k_panel = panel + static_cast<size_t>(t) * segment_bytes;
    if (there < count) std::memset(args.k_panel, 0, segment_bytes);
    for (int32_t i = 0; i < there; ++i) {
      args.k_offset[i] =
          entry_offset(view, rows, unit.seq, false, unit.kv_head, (first + i) * step + t);
    }
    args.num_keys = there;
    if (there > 0) call.k.pack(args);
  }
}

void give_rows(const EstimateCall& call, const KeyUnit& unit, int32_t head, Source source,
               int32_t base, int32_t first, int32_t count, float* means, int64_t* q_offset,
               EstimateTile& tile) {
  const tsp_tensor_t& view = call.p.q;
  const int32_t end = unit.rows.count;
  const int32_t step = call.step(source);
  tile.num_rows = count;
  tile.num_segments = call.segments(source);
  tile.q_offset = q_offset;
  if (source == Source::kMeans) {
    tile.q = {means, TSP_F32, call.dim, 1};
    for (int32_t r = 0; r < count; ++r) {
      const int32_t begin = base + (first + r) * step;
      q_offset[r] = int64_t{r} * call.dim;
      mean_of_rows(call, unit, true, head, begin, std::min(begin + step, end), means + q_offset[r]);
    }
    return;
  }
  tile.q = {view.data, view.dtype, call.dim, view.dim_stride};
  for (int32_t t = 0; t < tile.num_segments; ++t) {
    for (int32_t r = 0; r < count; ++r) {
      const int32_t entry = base + (first + r) * step + step - 1 - t;
      q_offset[t * kEstimateRows + r] =
          entry < end ? entry_offset(view, unit.rows, unit.seq, true, head, entry) : -1;
    }
  }
}

}  // namespace tsp::cpu
