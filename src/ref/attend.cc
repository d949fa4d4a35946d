// SPDX-License-Identifier: MIT
// What tsp_attend() means: a softmax over the visible tokens of the head's set, row by row.
#include "tokensparse/attend.h"

#include <cmath>
#include <limits>

#include "ref/ref_ops.h"

namespace tsp::ref {
namespace {

/// Tokens that a query row sees: entries of a list, or 0 .. sink - 1 and, from `first` on, as many
/// as make `count`.
struct Visible {
  const int32_t* list;  // null: ranges
  int32_t sink;
  int32_t first;
  int32_t count;
  int32_t operator[](int32_t i) const {
    if (list != nullptr) return list[i];
    return i < sink ? i : first + i - sink;
  }
};

/// What a row that its set left out sees: the sink and the band, each key once.
Visible local_keys(const tsp_attend_params_t& p, int32_t position) {
  const int32_t first = std::max(0, position - p.band + 1);
  const int32_t sink = std::min(p.sink, first);
  return {nullptr, sink, first, sink + position - first + 1};
}

void write_row(const tsp_attend_params_t& p, const Seq& seq, int32_t q_row, int32_t head,
               const double* values, double lse) {
  const int64_t at = q_row_offset(p.out, seq, q_row, head);
  for (int64_t d = 0; d < p.out.dim; ++d) {
    store_from_f32(p.out.data, p.out.dtype, at + d * p.out.dim_stride,
                   values == nullptr ? 0.0f : static_cast<float>(values[d]));
  }
  if (p.lse.data != nullptr) {
    store_from_f32(p.lse.data, TSP_F32, q_row_offset(p.lse, seq, q_row, head),
                   static_cast<float>(lse));
  }
}

void attend_row(const tsp_attend_params_t& p, const Seq& seq, int32_t q_row, int32_t head,
                const Visible& visible, double* weights, double* sums) {
  const auto kv_head = static_cast<int32_t>(head / (p.q.heads / p.k.heads));
  double max = -std::numeric_limits<double>::infinity();
  for (int32_t i = 0; i < visible.count; ++i) {
    weights[i] = logit(p.q, p.k, seq, q_row, visible[i], head, p.scale);
    max = std::max(max, weights[i]);
  }
  double total = 0;
  std::fill(sums, sums + p.v.dim, 0.0);
  for (int32_t i = 0; i < visible.count; ++i) {
    const double weight = std::exp(weights[i] - max);
    total += weight;
    const int64_t v_at = k_row_offset(p.v, seq, visible[i], kv_head);
    for (int64_t d = 0; d < p.v.dim; ++d) {
      sums[d] +=
          weight * static_cast<double>(load_as_f32(p.v.data, p.v.dtype, v_at + d * p.v.dim_stride));
    }
  }
  for (int64_t d = 0; d < p.v.dim; ++d) sums[d] /= total;
  write_row(p, seq, q_row, head, sums, max + std::log(total));
}

}  // namespace

size_t attend_workspace(const tsp_context_t&, const tsp_attend_params_t& p) {
  return sizeof(double) * static_cast<size_t>(longest_k(p.batch) + p.v.dim);
}

tsp_status_t attend(tsp_context_t&, const tsp_attend_params_t& p) {
  auto* const weights = static_cast<double*>(p.workspace);
  double* const sums = weights + longest_k(p.batch);
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    const int32_t kept = p.selected.indices != nullptr ? p.selected.kept[b] : seq.k_len;
    const bool sparse = kept < seq.k_len;
    for (int32_t head = 0; head < p.q.heads; ++head) {
      const int32_t* const list =
          sparse ? set_indices(p.selected, b,
                               static_cast<int32_t>(head / (p.q.heads / p.selected.num_sets)))
                 : nullptr;
      int32_t below = 0;  // entries of the list at or before the query's position
      for (int32_t q_row = 0; q_row < seq.q_len; ++q_row) {
        const int32_t position = seq.q_pos() + q_row;
        if (!sparse) {
          attend_row(p, seq, q_row, head, {nullptr, 0, 0, position + 1}, weights, sums);
          continue;
        }
        while (below < kept && list[below] <= position) ++below;
        if (below > 0 && list[below - 1] == position) {
          attend_row(p, seq, q_row, head, {list, 0, 0, below}, weights, sums);
        } else if (p.dropped == TSP_DROPPED_LOCAL) {
          attend_row(p, seq, q_row, head, local_keys(p, position), weights, sums);
        } else {
          write_row(p, seq, q_row, head, nullptr, -std::numeric_limits<double>::infinity());
        }
      }
    }
  }
  return TSP_OK;
}

}  // namespace tsp::ref
