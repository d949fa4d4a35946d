// SPDX-License-Identifier: MIT
// From estimates to lists of key blocks. Every backend on the host decides here, in integers, so
// that equal estimates give equal lists; include/tokensparse/estimate.h says the rules.
#pragma once

#include <cstdint>

#include "core/blocks.h"

namespace tsp {

/// How the entries of one set in one sequence are cut into blocks.
struct BlockRows : Entries {
  int32_t block;

  int32_t num_key_blocks() const { return (count + block - 1) / block; }
  int32_t num_query_blocks() const { return tsp::num_query_blocks(num_queries(), block); }
  int32_t first_entry(int32_t m) const { return first_query + m * block; }
  int32_t last_entry(int32_t m) const { return std::min(first_entry(m) + block, count) - 1; }
  /// First key block that holds an entry of query block m; the last one is visible() - 1.
  int32_t diagonal(int32_t m) const { return first_entry(m) / block; }
  int32_t visible(int32_t m) const { return last_entry(m) / block + 1; }
};
/// Memory of a decision over up to n values.
struct ChoiceScratch {
  uint64_t* mass;  // [n]
  int32_t* order;  // [n]
  uint8_t* in;     // [n]
  float* sums;     // [key blocks]; flexprefill
};

/// Where one set of one sequence is written.
class BlockWriter {
 public:
  BlockWriter(const tsp_block_sets_t& sets, int32_t b, int32_t set);
  /// Query block m reads the marked ones of `visible` blocks; null: all of them.
  void write(int32_t m, int32_t visible, const uint8_t* in) const;
  /// Ascending entries; none where the caller wants no columns.
  void write_columns(const uint8_t* in, int32_t num_entries) const;
  void write_everything(const BlockRows& rows) const;

 private:
  int32_t* blocks_;
  int32_t* counts_;
  int32_t* columns_;
  int32_t* num_columns_;
  int64_t row_stride_;
};

/// xattention, pooled and flash: a query block from its masses over rows.visible(m) blocks.
void choose_row(const tsp_pattern_t& pattern, float threshold, const BlockRows& rows, int32_t m,
                const float* mass, const ChoiceScratch& scratch, const BlockWriter& out);

/// minference and flexprefill: mass per entry and per distance, rows.count of each.
struct Lines {
  float* columns;
  float* slashes;
};
void choose_vertical_slash(const tsp_pattern_t& pattern, const BlockRows& rows, const Lines& lines,
                           const ChoiceScratch& scratch, const BlockWriter& out);

/// Masses of pooled blocks: query block m has rows.visible(m) of them at mass + m * row_stride.
struct PooledRows {
  const float* mass;
  int64_t row_stride;
};
/// flexprefill: whether pooled blocks decide. `guess`: over rows.num_key_blocks().
bool pooled_fits(const tsp_pattern_t& pattern, const BlockRows& rows, const Lines& lines,
                 const float* guess);
/// flexprefill: `pooled.mass` null: lines decide; else scratch is for query blocks x key blocks
/// values. marks: [query blocks x key blocks].
void choose_flexprefill(const tsp_pattern_t& pattern, const BlockRows& rows, const Lines& lines,
                        const PooledRows& pooled, const ChoiceScratch& scratch, uint8_t* marks,
                        const BlockWriter& out);
/// Everything is read, whatever the estimates are.
bool reads_everything(const tsp_pattern_t& pattern, const BlockRows& rows);

/// Columns and rows of the last queries that vote for lines.
inline int32_t line_rows(const tsp_pattern_t& pattern, const BlockRows& rows) {
  const int32_t wanted = pattern.kind == TSP_PATTERN_MINFERENCE ? 64 : pattern.block;
  return std::min(wanted, rows.num_queries());
}
inline bool has_lines(const tsp_pattern_t& pattern) {
  return pattern.kind == TSP_PATTERN_MINFERENCE || pattern.kind == TSP_PATTERN_FLEXPREFILL;
}
inline float set_threshold(const tsp_pattern_t& pattern, int32_t set) {
  return pattern.thresholds != nullptr ? pattern.thresholds[set] : pattern.threshold;
}

}  // namespace tsp
