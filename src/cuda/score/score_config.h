// SPDX-License-Identifier: MIT
// Tiles of the score kernels and how the work is cut: plain C++, so that g++ tests it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace tsp::cuda {

constexpr int kScoreWarps = 16;     // a warp keeps its 32 query rows in registers
constexpr int kScoreUnitRows = 32;  // query rows of one head in a unit; one unit a warp
constexpr int kScoreTileKeys = 64;  // keys of a K tile
constexpr int kScoreStages = 4;     // K tiles in flight
constexpr int kScoreThreads = 32 * kScoreWarps;

// The warpgroup kernels (sm_90a): Q of four heads and three K tiles fill a multiprocessor.
constexpr int kWideKeys = 128;  // keys of a K tile; also the longest window
constexpr int kWideHeads = 4;   // query heads of a block
constexpr int kWideStages = 3;
constexpr int kWideThreads = 128 + 128 * kWideHeads;  // a warpgroup brings K, one a head multiplies
constexpr size_t wide_shared_limit_bytes = size_t{227} * 1024;

constexpr float kNoMax = -1e30f;        // maximum over no key: finite, so no inf - inf
constexpr float kRescaleAbove = 16.f;   // terms may reach 2^16 before the maximum moves
constexpr float kRaiseAbove = 65536.f;  // the same, of a sum of terms

/// The least that a block may have where the sm_80 kernels run: compute capability 8.6 and 8.9.
constexpr size_t kSmallestBlockLimit = size_t{99} * 1024;

/// How one sequence is cut. A block owns one KV head, `heads_per_block` of its query heads and one
/// chunk of the keys; its 16 warps own 32 query rows each. A window of more than 512 rows does not
/// fit: then a block owns one head and walks over its rows in `rounds`.
struct ScorePlan {
  int32_t units_per_head;  // ceil(w / 32)
  int32_t heads_per_block;
  int32_t head_blocks;  // ceil(G / heads_per_block)
  int32_t rounds;
  int32_t stat_chunks;  // chunks of the keys in the first pass: all Tk
  int32_t mass_chunks;  // in the second: the prefix
  int32_t stat_rows;    // rows of a head in the statistics, padded to whole units
  bool wide;            // the warpgroup kernels
};

inline int32_t ceil_div(int64_t a, int64_t b) { return static_cast<int32_t>((a + b - 1) / b); }

/// `warpgroups`: the chip has them (sm_90a) and their kernels take windows of up to 128.
inline ScorePlan plan_score(int32_t window_len, int32_t k_len, int32_t prefix_len,
                            int32_t num_kv_heads, int32_t group, int32_t num_sms, bool warpgroups) {
  ScorePlan plan;
  // The blocks of a wide kernel wait for each other, so all must fit at once.
  plan.wide = warpgroups && window_len <= kWideKeys &&
              int64_t{num_kv_heads} * ceil_div(group, kWideHeads) <= num_sms;
  plan.units_per_head = ceil_div(window_len, kScoreUnitRows);
  plan.stat_rows = plan.units_per_head * kScoreUnitRows;
  const int32_t most_heads = plan.wide ? kWideHeads : kScoreWarps / plan.units_per_head;
  plan.heads_per_block = std::clamp(most_heads, 1, group);
  plan.head_blocks = ceil_div(group, plan.heads_per_block);
  plan.heads_per_block = ceil_div(group, plan.head_blocks);  // 7 heads: 4 + 3, not 4 + 3 idle
  plan.rounds = ceil_div(int64_t{plan.units_per_head} * plan.heads_per_block, kScoreWarps);
  // One wave: as many blocks as multiprocessors (a block fills one), each with an equal chunk.
  const int32_t wanted = std::max(1, num_sms / (num_kv_heads * plan.head_blocks));
  const int32_t tile = plan.wide ? kWideKeys : kScoreTileKeys;
  plan.stat_chunks = std::min(wanted, std::max(1, ceil_div(k_len, tile)));
  plan.mass_chunks = std::min(wanted, std::max(1, ceil_div(prefix_len, tile)));
  return plan;
}

}  // namespace tsp::cuda
