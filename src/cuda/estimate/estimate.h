// SPDX-License-Identifier: MIT
// estimate on the device: products of rows and keys to logits, logits to masses, masses to lists.
// Counts stay on the device, where index sets leave them: grids are sized for every token kept, and
// blocks of a grid without work end at once.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/views.h"

namespace tsp::cuda {

/// How the entries of a head are cut, as core/block_choice.h says.
struct BlockCut {
  int32_t count;        // entries
  int32_t first_query;  // first entry that is a query

  TSP_HOST_DEVICE int32_t queries() const { return count - first_query; }
  TSP_HOST_DEVICE int32_t key_blocks(int32_t block) const { return (count + block - 1) / block; }
  TSP_HOST_DEVICE int32_t query_blocks(int32_t block) const {
    return (queries() + block - 1) / block;
  }
  TSP_HOST_DEVICE int32_t first_entry(int32_t m, int32_t block) const {
    return first_query + m * block;
  }
  TSP_HOST_DEVICE int32_t last_entry(int32_t m, int32_t block) const {
    const int32_t end = first_entry(m, block) + block;
    return (end < count ? end : count) - 1;
  }
  TSP_HOST_DEVICE int32_t visible(int32_t m, int32_t block) const {
    return last_entry(m, block) / block + 1;
  }
};

/// Lists of one sequence.
struct BlockLists {
  int32_t* blocks = nullptr;       // [sets, query blocks, row_stride]
  int32_t* counts = nullptr;       // [sets, query blocks]
  int32_t* columns = nullptr;      // [sets, column_stride]; null: not wanted
  int32_t* num_columns = nullptr;  // [sets]
  int64_t row_stride = 0;
  int64_t set_stride = 0;
  int64_t count_stride = 0;
  int64_t column_stride = 0;
};

/// Which values belong: those above `value`, and of its equals those before index `end`.
struct Cut {
  unsigned long long value;
  int64_t end;
};
/// What the lines of a set decided.
struct LineChoice {
  int32_t everything;
  int32_t pooled;  // flexprefill: the pairs above `pairs` are in
  Cut pairs;
};

constexpr int32_t kThresholdsInLaunch = 64;  // sets whose thresholds fit into a launch's arguments
constexpr int32_t kProductTile = 128;        // rows and columns of a tile of logits
constexpr int32_t kTilesAtOnce = 4;          // tiles of keys that a row's statistics are of
constexpr int32_t kWidePart = 8;             // key groups of a part, on warpgroup products
constexpr int32_t kWideParts = 32;           // parts of a tile there: rows have whole tiles of them

/// What all kernels of a call share; which rows, heads and sets is the launch's business.
struct EstimateArgs {
  Rows q, k;
  Sets sets;
  BlockLists out;
  int32_t q_len, k_len, head_dim;
  int32_t num_heads, num_kv_heads, num_sets;
  int32_t units;  // lists of entries of one KV head: head h has unit h / (num_heads / units)
  bool bf16;
  float scale_log2;
  // The pattern.
  int32_t kind, block, stride;
  float alpha, gamma, tau;
  int32_t min_budget, vertical, slash;
  int32_t sink_blocks, local_blocks, last_blocks;
  int32_t key_blocks, query_blocks;  // of all tokens: strides of what follows
  // Workspace.
  BlockCut* cuts;        // [Hq]
  float* key_means;      // [units, key blocks, D]
  uint16_t* key_parts;   // flash: [units, key blocks, 2, D], their sum a key mean
  float* query_means;    // [Hq, query blocks, D]
  float* last_means;     // flexprefill: [Hq, D], of the last queries
  float* logits;         // [heads of the launch, rows, row_stride]
  float* mass;           // [sets of the launch, query blocks of the launch, key blocks]
  float2* line_stats;    // lines: [heads of the launch, rows, column chunks] maximum and sum
  float* line_shift;     // [heads of the launch, rows] a weight is 2^(logit - shift)
  float* head_columns;   // [heads of the launch, row tiles, Tk]
  float* diagonals;      // [heads of the launch, row tiles, column tiles, 2 * kProductTile]
  float* columns;        // [sets of the launch, Tk]
  float* slashes;        // as columns
  int32_t* slash_rank;   // minference: [sets of the launch, Tk + 1] slashes before a distance
  float* guess;          // flexprefill: [sets of the launch, key blocks]
  float* sums;           // [sets of the launch, 2, key blocks] columns and slashes by block
  uint8_t* line_blocks;  // [sets of the launch, 2, key blocks] those that are in
  LineChoice* choices;   // [sets of the launch]

  TSP_HOST_DEVICE int32_t heads_per_set() const { return num_heads / num_sets; }
  TSP_HOST_DEVICE int32_t unit_of(int32_t head) const { return head / (num_heads / units); }
  TSP_HOST_DEVICE int32_t kv_head_of(int32_t head) const {
    return head / (num_heads / num_kv_heads);
  }
  /// Queries that vote for lines.
  TSP_HOST_DEVICE int32_t line_rows(const BlockCut& cut, bool minference) const {
    const int32_t wanted = minference ? 64 : block;
    return cut.queries() < wanted ? cut.queries() : wanted;
  }
};

/// What a launch computes, a row of it for a query group (kGroups), a query block (kFlash), its
/// mean (kMeans) or the mean of the last queries (kGuess): the logarithm, to base 2, of the sum of
/// the weights that the row gives to each part of a key block; NaN where a logit is not finite,
/// -inf where it sees none.
enum class RowsOf : int32_t { kGroups, kFlash, kMeans, kGuess };
struct LogitRows {
  RowsOf of;
  int32_t first_head, num_heads;
  int32_t first_row, num_rows;  // of every head
  int32_t part;                 // kGroups: key groups of a part, at most kProductTile
  int32_t parts_of_block;       // parts of a key block
  int64_t stride;               // floats between rows
};
/// The last queries of some heads against all keys.
struct LineRows {
  int32_t first_head, num_heads;
  int32_t num_rows;   // at most
  int32_t row_tiles;  // of kProductTile rows
  int32_t col_tiles;  // of as many keys

  /// Chunks of kTilesAtOnce column tiles.
  TSP_HOST_DEVICE int32_t col_chunks() const {
    return (col_tiles + kTilesAtOnce - 1) / kTilesAtOnce;
  }
};
/// Sets and query blocks that a launch decides about.
struct MapPart {
  int32_t first_set, num_sets;
  int32_t first_block, num_blocks;
  float thresholds[kThresholdsInLaunch];
};

enum class MeanOf : int32_t { kKeys, kQueries, kLastQueries };  // each with those before it

tsp_status_t launch_cuts(const EstimateArgs& args, cudaStream_t stream);
/// The kinds up to `last`.
tsp_status_t launch_means(const EstimateArgs& args, MeanOf last, cudaStream_t stream);
/// kGroups, on the tensor cores of every chip, and on warpgroup products.
tsp_status_t launch_group_sums(const EstimateArgs& args, const LogitRows& rows,
                               cudaStream_t stream);
tsp_status_t launch_wide_group_sums(const EstimateArgs& args, const LogitRows& rows,
                                    int32_t num_sms, cudaStream_t stream);
/// kFlash.
tsp_status_t launch_joint_sums(const EstimateArgs& args, const LogitRows& rows,
                               cudaStream_t stream);
/// kMeans and kGuess, in f32.
tsp_status_t launch_mean_products(const EstimateArgs& args, const LogitRows& rows,
                                  cudaStream_t stream);
/// Masses of the part's query blocks from the rows of its heads; kGuess: args.guess.
tsp_status_t launch_mass(const EstimateArgs& args, const LogitRows& rows, const MapPart& part,
                         cudaStream_t stream);
/// Statistics of the rows of `rows`.
tsp_status_t launch_line_stats(const EstimateArgs& args, const LineRows& rows, cudaStream_t stream);
/// Adds what the heads of `rows` give to columns and slashes of the sets from `first_set` on.
tsp_status_t launch_lines(const EstimateArgs& args, const LineRows& rows, int32_t first_set,
                          cudaStream_t stream);
tsp_status_t launch_choose_map(const EstimateArgs& args, const MapPart& part, cudaStream_t stream);
tsp_status_t launch_choose_lines(const EstimateArgs& args, const MapPart& part, bool hopper,
                                 cudaStream_t stream);

}  // namespace tsp::cuda
