// SPDX-License-Identifier: MIT
// select without a sort. Scores are non-negative floats, which order as their bits do: a descent
// over histograms of 11 bits at a time finds the cut among a sequence's tokens (count and mass) and
// each set's k-th best, in three passes; one more pass writes the indices in order.
//
// Built without contraction of a * b + c: sums over heads must round as the reference rounds them.
#include "cpu/ops.h"

#include <bit>
#include <cmath>
#include <cstring>

namespace tsp::cpu {
namespace {

constexpr int32_t kBins = 2048;
constexpr int32_t kStrip = 1024;            // tokens
constexpr int32_t kShifts[] = {21, 10, 0};  // bits 31..21, 20..10, 9..0

/// Counts (and masses) of the values that share a prefix of bits, by their next 11 bits.
struct Histogram {
  uint32_t count[kBins];
  uint64_t mass[kBins];
};

float score_at(const tsp_select_params_t& p, int64_t column, int64_t head) {
  return static_cast<const float*>(
      p.scores.data)[column * p.scores.token_stride + head * p.scores.head_stride];
}

/// out[t - begin] = sum over heads first .. first + count - 1 of the score of t, heads ascending,
/// in f32. Returns whether every score can be ranked.
bool sum_heads(const tsp_select_params_t& p, int64_t column, int32_t begin, int32_t end,
               int64_t first, int64_t count, float* out) {
  const auto length = static_cast<size_t>(end - begin);
  const auto* const data = static_cast<const float*>(p.scores.data);
  int32_t bad = 0;
  for (int64_t h = 0; h < count; ++h) {
    if (p.scores.token_stride == 1) {
      const float* const row = data + column + begin + (first + h) * p.scores.head_stride;
      if (h == 0) {
        for (size_t t = 0; t < length; ++t) out[t] = row[t];
      } else {
        for (size_t t = 0; t < length; ++t) out[t] += row[t];
      }
      for (size_t t = 0; t < length; ++t) bad |= !(row[t] >= 0.0f && row[t] <= 2.0f);
    } else {
      for (size_t t = 0; t < length; ++t) {
        const float s = score_at(p, column + begin + static_cast<int64_t>(t), first + h);
        out[t] = h == 0 ? s : out[t] + s;
        bad |= !(s >= 0.0f && s <= 2.0f);
      }
    }
  }
  return bad == 0;
}

/// Bits that order as the values do. A negative zero ranks as zero.
uint32_t order_bits(float value) { return std::bit_cast<uint32_t>(value + 0.0f); }

int32_t ceil_log2(int64_t n) {
  return n <= 1 ? 0 : static_cast<int32_t>(std::bit_width(static_cast<uint64_t>(n - 1)));
}

/// How many tokens, ascending by g, have a cumulative mass below the limit.
int32_t count_dropped(const tsp_select_params_t& p, const float* g, int32_t prefix,
                      Histogram& histogram) {
  const float unit = std::ldexp(1.0f, 61 - ceil_log2(p.scores.heads) - ceil_log2(prefix));
  uint64_t below_mass = 0;
  int32_t below = 0;
  uint64_t limit = 0;
  uint32_t path = 0;  // the bits found so far
  for (int32_t level = 0; level < 3; ++level) {
    std::memset(&histogram, 0, sizeof histogram);
    const int32_t shift = kShifts[level];
    const uint32_t bins = level == 2 ? 1024 : kBins;
    for (int32_t t = 0; t < prefix; ++t) {
      const uint32_t bits = order_bits(g[t]);
      if (level > 0 && bits >> kShifts[level - 1] != path) continue;
      const uint32_t bin = (bits >> shift) & (bins - 1);
      ++histogram.count[bin];
      histogram.mass[bin] += static_cast<uint64_t>(g[t] * unit);
    }
    if (level == 0) {
      uint64_t total = 0;
      for (uint32_t bin = 0; bin < bins; ++bin) total += histogram.mass[bin];
      limit = static_cast<uint64_t>(
          std::ceil(static_cast<double>(p.coverage) * static_cast<double>(total)));
    }
    // The first bin whose tokens reach the limit.
    uint32_t bin = 0;
    while (bin < bins &&
           (histogram.count[bin] == 0 || (histogram.mass[bin] + below_mass < limit))) {
      below += static_cast<int32_t>(histogram.count[bin]);
      below_mass += histogram.mass[bin];
      ++bin;
    }
    if (bin == bins) return below;  // only when everything lies below the limit
    path = level == 0 ? bin : (path << (level == 2 ? 10 : 11)) | bin;
  }
  // All of one value: the j-th of them reaches below_mass + j * m.
  const uint64_t m = static_cast<uint64_t>(std::bit_cast<float>(path) * unit);
  if (m == 0 || limit <= below_mass) return below;
  return below + static_cast<int32_t>((limit - below_mass - 1) / m);
}

/// Ascending positions of the `keep` largest values; ties go to the lower position.
void write_largest(const float* values, int32_t prefix, int32_t keep, uint32_t* count,
                   int32_t* indices) {
  uint32_t path = 0;
  int32_t wanted = keep;  // of the values that share `path`
  for (int32_t level = 0; level < 3 && keep > 0; ++level) {
    const int32_t shift = kShifts[level];
    const uint32_t bins = level == 2 ? 1024 : kBins;
    std::memset(count, 0, bins * sizeof *count);
    for (int32_t t = 0; t < prefix; ++t) {
      const uint32_t bits = order_bits(values[t]);
      if (level > 0 && bits >> kShifts[level - 1] != path) continue;
      ++count[(bits >> shift) & (bins - 1)];
    }
    uint32_t bin = bins - 1;
    while (static_cast<int32_t>(count[bin]) < wanted) wanted -= static_cast<int32_t>(count[bin--]);
    path = level == 0 ? bin : (path << (level == 2 ? 10 : 11)) | bin;
  }
  if (keep == 0) return;
  for (int32_t t = 0, n = 0; n < keep; ++t) {
    const uint32_t bits = order_bits(values[t]);
    const bool tie = bits == path && wanted > 0;
    indices[n] = t;
    n += bits > path || tie;
    wanted -= tie;
  }
}

/// What a call needs to remember of a sequence between its passes.
struct SeqPlan {
  int32_t kept;  // of the prefix
};

int32_t longest_prefix(const tsp_select_params_t& p) {
  int32_t longest = 0;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    longest = std::max(longest, seq_at(p.batch, b).prefix_len(p.window));
  }
  return longest;
}

/// Prefix tokens that the sequence keeps; `prefix` itself when it is dense.
int32_t count_kept(const tsp_select_params_t& p, const Seq& seq, float* g, Histogram& histogram) {
  const int32_t window = seq.window(p.window);
  const int32_t prefix = seq.prefix_len(p.window);
  if (seq.k_len <= int64_t{p.min_tokens} + window) return prefix;
  if (p.keep == 0 && p.coverage == 0) return prefix;
  const int64_t column = score_offset(p.batch, p.window, seq.index);
  for (int32_t t = 0; t < prefix; t += kStrip) {  // a strip's sums stay in L1 over the heads
    const int32_t end = std::min(t + kStrip, prefix);
    if (!sum_heads(p, column, t, end, 0, p.scores.heads, g + t)) return prefix;
  }
  int64_t kept;
  if (p.keep > 0) {
    kept = static_cast<int64_t>(std::ceil(static_cast<double>(p.keep) * seq.k_len)) - window;
  } else {
    const int32_t dropped = count_dropped(p, g, prefix, histogram);
    if (dropped == 0) return prefix;
    kept = int64_t{prefix} - dropped - 1;
  }
  return static_cast<int32_t>(std::min<int64_t>(prefix, std::max<int64_t>(p.min_tokens, kept)));
}

void write_set(const tsp_select_params_t& p, const Seq& seq, int32_t kept, int32_t set, float* rank,
               uint32_t* count) {
  const int32_t window = seq.window(p.window);
  const int32_t prefix = seq.prefix_len(p.window);
  int32_t* const indices = mutable_set_indices(p.selected, seq.index, set);
  if (kept == prefix) {
    for (int32_t t = 0; t < prefix; ++t) indices[t] = t;
  } else {
    const int64_t heads = p.scores.heads / p.selected.num_sets;
    const int64_t column = score_offset(p.batch, p.window, seq.index);
    if (heads == 1 && p.scores.token_stride == 1) {
      const auto* const scores = static_cast<const float*>(p.scores.data);
      write_largest(scores + column + set * p.scores.head_stride, prefix, kept, count, indices);
    } else {
      sum_heads(p, column, 0, prefix, set * heads, heads, rank);
      write_largest(rank, prefix, kept, count, indices);
    }
  }
  for (int32_t t = 0; t < window; ++t) indices[kept + t] = prefix + t;
}

}  // namespace

size_t select_workspace(const tsp_context_t& ctx, const tsp_select_params_t& p) {
  const auto threads = static_cast<size_t>(ctx.threads->size());
  return threads * align64(static_cast<size_t>(longest_prefix(p)) * sizeof(float)) +
         align64(threads * sizeof(Histogram)) +
         align64(static_cast<size_t>(p.batch.num_seqs) * sizeof(SeqPlan));
}

tsp_status_t select(tsp_context_t& ctx, const tsp_select_params_t& p) {
  const auto threads = static_cast<size_t>(ctx.threads->size());
  const size_t stride =
      align64(static_cast<size_t>(longest_prefix(p)) * sizeof(float)) / sizeof(float);
  Workspace<> arena(p.workspace);
  auto* const values = arena.take<float>(threads * stride);
  auto* const histograms = arena.take<Histogram>(threads);
  auto* const plans = arena.take<SeqPlan>(static_cast<size_t>(p.batch.num_seqs));
  const auto values_of = [&](int32_t thread) {
    return values + static_cast<size_t>(thread) * stride;
  };

  for_each_item(ctx, p.batch.num_seqs, [&](int64_t b, int32_t thread) {
    const Seq seq = seq_at(p.batch, static_cast<int32_t>(b));
    plans[b].kept = count_kept(p, seq, values_of(thread), histograms[thread]);
    p.selected.kept[b] = plans[b].kept + seq.window(p.window);
  });
  const int64_t num_sets = p.selected.num_sets;
  for_each_item(ctx, p.batch.num_seqs * num_sets, [&](int64_t item, int32_t thread) {
    const auto b = static_cast<int32_t>(item / num_sets);
    write_set(p, seq_at(p.batch, b), plans[b].kept, static_cast<int32_t>(item % num_sets),
              values_of(thread), histograms[thread].count);
  });
  return TSP_OK;
}

}  // namespace tsp::cpu
