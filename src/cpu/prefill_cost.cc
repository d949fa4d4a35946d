// SPDX-License-Identifier: MIT
#include "cpu/prefill_cost.h"

#include <algorithm>
#include <cmath>

#include "core/prefill_parts.h"

namespace tsp::cpu {
namespace {

constexpr int32_t kFewestKeys = 1024;  // nobody measured shorter ones on every instruction set
constexpr double kStart = 40e3;        // of the steps beyond attend, whatever their size
constexpr double kScorePair = 0.62;    // of an attended one: no value is multiplied
constexpr double kKeptPair = 1.05;     // shorter rows: more of a tile is its beginning and its end
constexpr double kLocalPair = 1.4;     // the same, and keys that a tile multiplies for no row
constexpr double kLikelyKept = 0.45;   // of the tokens, where coverage decides
constexpr double kDearestLook = 0.01;  // of exact attention: what a look in vain may cost

// Of attention by blocks, beside that on all pairs (AMD EPYC Zen 5, 2026-11-27, docs/cpu_speed.md).
constexpr double kListedPair = 1.1;     // a block alone is a shorter step
constexpr double kListedStart = 0.05;   // packing, and rows read and written: they don't shrink
constexpr double kLikelyOfRest = 0.45;  // of the pairs that are not always in
constexpr double kPooledEstimate = 0.03;

/// What a fixed share keeps, what coverage may keep.
double likely_kept(const tsp_prefill_params_t& p, const Seq& seq) {
  const double wanted = p.keep > 0 ? std::ceil(double{p.keep} * seq.k_len)
                                   : kLikelyKept * static_cast<double>(seq.k_len);
  const double floor = static_cast<double>(p.min_tokens) + seq.window(p.window);
  return std::min<double>(seq.k_len, std::max(wanted, floor));
}

/// Share of the pairs of `kept` tokens that the blocks are likely to hold.
double likely_listed(const tsp_pattern_t& pattern, const Seq& seq, int32_t kept) {
  const double block = pattern.block;
  const double seen = (seq.k_len - (seq.q_len - 1) / 2.0) / seq.k_len;  // of the keys, by a query
  double fixed = 1.0 + pattern.sink_blocks + pattern.local_blocks;
  if (pattern.kind == TSP_PATTERN_FLEXPREFILL) fixed += 2.0 * pattern.min_budget / block;
  if (pattern.kind == TSP_PATTERN_MINFERENCE) {
    return std::min(1.0, (double{block} * fixed + pattern.vertical + pattern.slash) / kept);
  }
  const double always = std::min(1.0, fixed / std::max(kept / block * seen, 1.0));
  const bool mass = pattern.kind != TSP_PATTERN_FLASH;
  const float asked = !mass                                     ? 1 - pattern.alpha
                      : pattern.kind == TSP_PATTERN_FLEXPREFILL ? pattern.gamma
                      : pattern.thresholds == nullptr           ? pattern.threshold
                                                                : 0.0f;
  return asked >= 1 ? 1 : always + (1 - always) * kLikelyOfRest;
}

}  // namespace

bool pattern_pays(const tsp_prefill_params_t& p, const Seq& seq, int32_t kept, double listed) {
  if (listed >= 0) return kListedPair * listed + kListedStart < 1;
  if (kept < kFewestKeys) return false;
  const double estimate =
      p.pattern.kind == TSP_PATTERN_XATTENTION ? 1.0 / p.pattern.stride : kPooledEstimate;
  return kListedPair * likely_listed(p.pattern, seq, kept) + kListedStart + estimate < 1;
}

bool prefill_pays(const Costs& costs, const tsp_prefill_params_t& p, const Seq& seq, int32_t kept,
                  bool chosen) {
  if (seq.k_len < kFewestKeys) return false;
  const auto heads = static_cast<double>(p.q.heads);
  const auto kv_heads = static_cast<double>(p.k.heads);
  const auto dim = static_cast<double>(p.q.dim);
  const double rows = seq.q_len;
  const double keys = seq.k_len;
  const double window = seq.window(p.window);
  const double pair = costs.pair_channel * dim + costs.pair;
  const double packed_key = 2 * costs.channel * dim;
  const double seen = keys - (rows - 1) / 2;  // keys of a query, on average

  const double exact = heads * rows * seen * pair + kv_heads * keys * packed_key;
  const auto scoring = [&](double queries, double scored_keys) {
    return kStart + heads * queries * (scored_keys - (queries - 1) / 2) * pair * kScorePair +
           kv_heads * scored_keys * packed_key / 2;
  };
  if (kept < 0 && p.keep == 0) {
    const double sample = std::min<double>(keys, (kPilotStretches + 3) * kPilotStretch);
    if (scoring(std::min<double>(kPilotRows, window), sample) > kDearestLook * exact) return false;
  }

  const double kept_keys = kept >= 0 ? kept : likely_kept(p, seq);
  const double kept_rows =
      keys <= window ? rows : window + (kept_keys - window) * (rows - window) / (keys - window);
  const double lists = p.share == TSP_SHARE_HEAD ? heads : kv_heads;
  double sparse = heads * kept_rows * kept_keys * (seen / keys) * pair * kKeptPair +
                  lists * kept_keys * packed_key;
  if (p.dropped == TSP_DROPPED_LOCAL) {
    const double local = static_cast<double>(p.sink) + p.band;
    sparse += heads * (rows - kept_rows) * std::min(local, seen) * pair * kLocalPair +
              kv_heads * std::min(local + rows, keys) * packed_key;
  }
  if (!chosen) sparse += scoring(window, keys) + heads * (keys - window) * costs.choice;
  return sparse < exact;
}

}  // namespace tsp::cpu
