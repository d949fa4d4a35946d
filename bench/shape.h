// SPDX-License-Identifier: MIT
// What a benchmark measures: the shape of one attention layer, and how long the work must take at
// least. One place for the FLOP and byte model of every op.
#pragma once

#include <cstdint>
#include <vector>

#include "tokensparse/tokensparse.h"

namespace tsp::bench {

struct Shape {
  int64_t tokens = 8192;    // Tk
  int64_t q_tokens = 8192;  // Tq: the last of them
  int64_t heads = 14;
  int64_t kv_heads = 2;
  int64_t dim = 64;
  tsp_dtype_t kv_dtype = TSP_F16;
  tsp_dtype_t q_dtype = TSP_F32;  // of q and out

  int64_t window(int64_t wanted) const { return wanted < q_tokens ? wanted : q_tokens; }
  int64_t prefix(int64_t wanted) const { return tokens - window(wanted); }
};

/// Useful work of a call: products that the definition asks for (masked pairs, padding and
/// recomputation do not count; exponentials neither), and bytes that have to move at least once.
struct Work {
  double flops = 0;
  double bytes = 0;
  Work operator+(const Work& other) const { return {flops + other.flops, bytes + other.bytes}; }
};

/// The kept tokens of each set, as select wrote them.
struct Sets {
  std::vector<int32_t> indices;  // [num_sets, tokens]
  int32_t num_sets = 0;
  int32_t kept = 0;
};

class BlockLists;

/// `sets` null: dense; `blocks` null: every key. Rows that were left out see the first `sink` and
/// the last `band` keys; both 0: they are zeros.
Work attend_work(const Shape& shape, const Sets* sets, int64_t sink, int64_t band,
                 const BlockLists* blocks = nullptr);
/// One product of the window's queries with every key they see; K read once.
Work score_work(const Shape& shape, int64_t window);
/// The pattern's products: of every `stride`-th of the pairs, of means, or of the last queries with
/// every key; q and K read once.
Work estimate_work(const Shape& shape, const tsp_pattern_t& pattern);
/// Scores read once, lists written once.
Work select_work(const Shape& shape, int64_t window, int64_t num_sets, int64_t kept);

}  // namespace tsp::bench
