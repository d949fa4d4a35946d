// SPDX-License-Identifier: MIT
// What tsp_score() means: explicit softmax rows of the window, their mean, the pooled mean.
#include "tokensparse/score.h"

#include <cmath>
#include <limits>

#include "ref/ref_ops.h"

namespace tsp::ref {
namespace {

/// mean[t] = mean over the window's rows of the softmax over every visible key, t < prefix.
void mean_of_window(const tsp_score_params_t& p, const Seq& seq, int32_t head, double* row,
                    double* mean) {
  const int32_t window = seq.window(p.window);
  const int32_t prefix = seq.prefix_len(p.window);
  std::fill(mean, mean + prefix, 0.0);
  for (int32_t q_row = seq.q_len - window; q_row < seq.q_len; ++q_row) {
    const int32_t visible = seq.q_pos() + q_row + 1;
    double max = -std::numeric_limits<double>::infinity();
    for (int32_t t = 0; t < visible; ++t) {
      row[t] = logit(p.q, p.k, seq, q_row, t, head, p.scale);
      max = std::max(max, row[t]);
    }
    double sum = 0;
    for (int32_t t = 0; t < visible; ++t) sum += row[t] = std::exp(row[t] - max);
    for (int32_t t = 0; t < prefix; ++t) mean[t] += row[t] / sum / window;
  }
}

}  // namespace

size_t score_workspace(const tsp_context_t&, const tsp_score_params_t& p) {
  return 2 * sizeof(double) * static_cast<size_t>(longest_k(p.batch));
}

tsp_status_t score(tsp_context_t&, const tsp_score_params_t& p) {
  auto* const row = static_cast<double*>(p.workspace);
  double* const mean = row + longest_k(p.batch);
  const int32_t reach = p.pool / 2;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    const int32_t prefix = seq.prefix_len(p.window);
    const int64_t column = score_offset(p.batch, p.window, b);
    for (int32_t head = 0; head < p.q.heads && prefix > 0; ++head) {
      mean_of_window(p, seq, head, row, mean);
      for (int32_t t = 0; t < prefix; ++t) {
        double sum = 0;
        for (int32_t u = std::max(0, t - reach); u <= std::min(prefix - 1, t + reach); ++u) {
          sum += mean[u];
        }
        store_from_f32(p.scores.data, TSP_F32,
                       (column + t) * p.scores.token_stride + head * p.scores.head_stride,
                       static_cast<float>(sum / p.pool));
      }
    }
  }
  return TSP_OK;
}

}  // namespace tsp::ref
