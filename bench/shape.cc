// SPDX-License-Identifier: MIT
#include "bench/shape.h"

#include <algorithm>

#include "bench/block_lists.h"
#include "core/dtype.h"

namespace tsp::bench {
namespace {

double q_row_bytes(const Shape& s) {
  return static_cast<double>(s.heads * s.dim * dtype_bytes(s.q_dtype));
}
double k_row_bytes(const Shape& s) {
  return static_cast<double>(s.kv_heads * s.dim * dtype_bytes(s.kv_dtype));
}

/// Pairs (query, key) of one head whose set is `list` (null: every position): a kept query sees the
/// kept keys up to it that its blocks list.
double pairs_of_head(const Shape& s, int32_t head, const int32_t* list, int64_t kept, int64_t sink,
                     int64_t band, const BlockLists* blocks) {
  const int64_t first_query = s.tokens - s.q_tokens;
  double pairs = 0;
  int64_t rank = 0;
  int64_t first_entry = 0;
  for (int64_t position = 0; position < s.tokens; ++position) {
    if (position == first_query) first_entry = rank;
    const bool in_set = rank < kept && (list == nullptr || list[rank] == position);
    if (in_set) ++rank;
    if (position < first_query) continue;
    if (!in_set) {
      pairs += static_cast<double>(std::min(sink + band, position + 1));
    } else {
      pairs += static_cast<double>(
          blocks == nullptr ? rank : blocks->keys_of(head, rank - 1, first_entry));
    }
  }
  return pairs;
}

}  // namespace

Work attend_work(const Shape& s, const Sets* sets, int64_t sink, int64_t band,
                 const BlockLists* blocks) {
  double pairs = 0;
  if (sets == nullptr && blocks == nullptr) {
    const auto tq = static_cast<double>(s.q_tokens);
    pairs = static_cast<double>(s.heads) * tq * (static_cast<double>(s.tokens) - (tq - 1) / 2);
  } else {
    for (int32_t head = 0; head < static_cast<int32_t>(s.heads); ++head) {
      const int64_t set = sets == nullptr ? 0 : head / (s.heads / sets->num_sets);
      const int32_t* const list =
          sets == nullptr ? nullptr : &sets->indices[static_cast<size_t>(set * s.tokens)];
      pairs +=
          pairs_of_head(s, head, list, sets == nullptr ? s.tokens : sets->kept, sink, band, blocks);
    }
  }
  const auto kept = static_cast<double>(sets == nullptr ? s.tokens : sets->kept);
  const double kept_share = kept / static_cast<double>(s.tokens);
  const auto tq = static_cast<double>(s.q_tokens);
  return {4 * static_cast<double>(s.dim) * pairs,
          2 * kept * k_row_bytes(s) + (1 + kept_share) * tq * q_row_bytes(s)};
}

Work score_work(const Shape& s, int64_t window) {
  const auto w = static_cast<double>(s.window(window));
  const double pairs =
      static_cast<double>(s.heads) * w * (static_cast<double>(s.tokens) - (w - 1) / 2);
  return {2 * static_cast<double>(s.dim) * pairs,
          static_cast<double>(s.tokens) * k_row_bytes(s) + w * q_row_bytes(s) +
              static_cast<double>(s.prefix(window) * s.heads) * sizeof(float)};
}

Work estimate_work(const Shape& s, const tsp_pattern_t& p) {
  const auto tq = static_cast<double>(s.q_tokens);
  const double pairs = static_cast<double>(s.heads) * tq * (static_cast<double>(s.tokens) - tq / 2);
  const double block = p.block;
  const double rows = p.kind == TSP_PATTERN_MINFERENCE ? 64 : block;
  const double line_pairs =
      static_cast<double>(s.heads) * std::min(rows, tq) * static_cast<double>(s.tokens);
  double products = 0;
  switch (p.kind) {
    case TSP_PATTERN_XATTENTION:
      products = pairs / p.stride;
      break;
    case TSP_PATTERN_POOLED:
      products = pairs / block / block;
      break;
    case TSP_PATTERN_FLASH:
      products = pairs / block;
      break;
    default:
      products = line_pairs;
  }
  return {2 * static_cast<double>(s.dim) * products,
          static_cast<double>(s.tokens) * k_row_bytes(s) + tq * q_row_bytes(s)};
}

Work select_work(const Shape& s, int64_t window, int64_t num_sets, int64_t kept) {
  return {0, static_cast<double>(s.prefix(window) * s.heads) * sizeof(float) +
                 static_cast<double>(num_sets * kept) * sizeof(int32_t)};
}

}  // namespace tsp::bench
