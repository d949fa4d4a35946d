// SPDX-License-Identifier: MIT
// What tsp_select() means. Unlike the other ops its result is exact: f32 sums in a fixed order and
// mass in integers give every backend the same sets, bit for bit.
#include "tokensparse/select.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "ref/ref_ops.h"

namespace tsp::ref {
namespace {

int32_t ceil_log2(int64_t n) {
  return n <= 1 ? 0 : static_cast<int32_t>(std::bit_width(static_cast<uint64_t>(n - 1)));
}

float score_at(const tsp_select_params_t& p, int64_t column, int64_t head) {
  return static_cast<const float*>(
      p.scores.data)[column * p.scores.token_stride + head * p.scores.head_stride];
}

/// out[t] = sum over heads first .. first + count - 1 of the score of t, heads ascending, in f32.
void sum_heads(const tsp_select_params_t& p, int64_t column, int32_t prefix, int64_t first,
               int64_t count, float* out) {
  for (int32_t t = 0; t < prefix; ++t) {
    float sum = score_at(p, column + t, first);
    for (int64_t h = 1; h < count; ++h) sum += score_at(p, column + t, first + h);
    out[t] = sum;
  }
}

bool all_rankable(const tsp_select_params_t& p, int64_t column, int32_t prefix) {
  for (int64_t h = 0; h < p.scores.heads; ++h) {
    for (int32_t t = 0; t < prefix; ++t) {
      const float s = score_at(p, column + t, h);
      if (!(s >= 0 && s <= 2)) return false;
    }
  }
  return true;
}

/// How many tokens, ascending by g, have a cumulative mass below the limit. Sorts g.
int32_t count_dropped(const tsp_select_params_t& p, int32_t prefix, float* g) {
  std::sort(g, g + prefix);
  const float unit = std::ldexp(1.0f, 61 - ceil_log2(p.scores.heads) - ceil_log2(prefix));
  uint64_t total = 0;
  for (int32_t t = 0; t < prefix; ++t) total += static_cast<uint64_t>(g[t] * unit);
  const auto limit = static_cast<uint64_t>(
      std::ceil(static_cast<double>(p.coverage) * static_cast<double>(total)));
  uint64_t cumulative = 0;
  int32_t n = 0;
  for (; n < prefix; ++n) {
    cumulative += static_cast<uint64_t>(g[n] * unit);
    if (cumulative >= limit) break;
  }
  return n;
}

/// Prefix tokens that the sequence keeps; `prefix` itself when it is dense.
int32_t count_kept(const tsp_select_params_t& p, const Seq& seq, int64_t column, float* g) {
  const int32_t window = seq.window(p.window);
  const int32_t prefix = seq.prefix_len(p.window);
  if (seq.k_len <= int64_t{p.min_tokens} + window) return prefix;
  if (p.keep == 0 && p.coverage == 0) return prefix;
  if (!all_rankable(p, column, prefix)) return prefix;
  int64_t kept;
  if (p.keep > 0) {
    kept = static_cast<int64_t>(std::ceil(static_cast<double>(p.keep) * seq.k_len)) - window;
  } else {
    sum_heads(p, column, prefix, 0, p.scores.heads, g);
    const int32_t n = count_dropped(p, prefix, g);
    if (n == 0) return prefix;
    kept = prefix - n - 1;
  }
  return static_cast<int32_t>(std::min<int64_t>(prefix, std::max<int64_t>(p.min_tokens, kept)));
}

}  // namespace

size_t select_workspace(const tsp_context_t&, const tsp_select_params_t& p) {
  return (sizeof(float) + sizeof(int32_t)) * static_cast<size_t>(longest_k(p.batch));
}

tsp_status_t select(tsp_context_t&, const tsp_select_params_t& p) {
  auto* const rank = static_cast<float*>(p.workspace);
  auto* const order = reinterpret_cast<int32_t*>(rank + longest_k(p.batch));
  const int64_t heads_per_set = p.scores.heads / p.selected.num_sets;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    const int32_t prefix = seq.prefix_len(p.window);
    const int64_t column = score_offset(p.batch, p.window, b);
    const int32_t kept = count_kept(p, seq, column, rank);
    p.selected.kept[b] = kept + seq.window(p.window);
    for (int32_t set = 0; set < p.selected.num_sets; ++set) {
      std::iota(order, order + prefix, 0);
      if (kept < prefix) {
        sum_heads(p, column, prefix, set * heads_per_set, heads_per_set, rank);
        std::sort(order, order + prefix, [rank](int32_t x, int32_t y) {
          return rank[x] != rank[y] ? rank[x] > rank[y] : x < y;
        });
        std::sort(order, order + kept);
      }
      int32_t* const indices = mutable_set_indices(p.selected, b, set);
      std::copy(order, order + kept, indices);
      std::iota(indices + kept, indices + kept + seq.window(p.window), prefix);
    }
  }
  return TSP_OK;
}

}  // namespace tsp::ref
