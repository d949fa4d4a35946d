// SPDX-License-Identifier: MIT
// What exact attention and prefill's steps cost, by stored constants: the answer to TSP_WHEN_PAYS
// is the same on every run and for any number of threads.
#pragma once

#include "core/layout.h"
#include "tokensparse/prefill.h"

namespace tsp::cpu {

/// Nanoseconds of one thread. A pair is a query and a key of one head.
struct Costs {
  double pair_channel;  // of a pair, per channel of the head dim
  double pair;          // of a pair, whatever the head dim: its weight
  double channel;       // of packing a channel of a key or a value
  double choice;        // of pooling and ranking one head's score of one token
};

/// OpTable::prefill_pays by the costs of an instruction set.
bool prefill_pays(const Costs& costs, const tsp_prefill_params_t& p, const Seq& seq, int32_t kept,
                  bool chosen);

/// Whether attending by the blocks of p.pattern is faster than by all of the `kept` tokens.
/// `listed`: the share of their pairs that the blocks hold; -1: not estimated yet, and estimating
/// counts.
bool pattern_pays(const tsp_prefill_params_t& p, const Seq& seq, int32_t kept, double listed);

}  // namespace tsp::cpu
