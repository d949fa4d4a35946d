// SPDX-License-Identifier: MIT
// select on the device: the count by radix descent over (tokens, mass), each set by radix descent
// over its keys and ordered compaction. No sort, nothing goes to the host.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cuda/views.h"

namespace tsp::cuda {

// Keys are the bits of a non-negative f32, which order as integers. Three levels cut 31 bits into
// 11, 10 and 10.
constexpr int kSelectLevels = 3;
TSP_HOST_DEVICE constexpr int level_bins(int level) { return level == 0 ? 2048 : 1024; }
TSP_HOST_DEVICE constexpr int level_first_bin(int level) {
  return level == 0 ? 0 : 1024 + 1024 * level;
}
TSP_HOST_DEVICE constexpr int level_shift(int level) { return 20 - 10 * level; }
constexpr int kSelectBins = 4096;
constexpr int kSelectThreads = 512;
constexpr int kVoteTokens = 512;     // tokens of a block that adds up all heads
constexpr int kSetTokens = 8 * 512;  // tokens of a block that reads one set
constexpr int kOrderTokens = 2048;   // tokens of a block that writes indices in order
constexpr int kClusterBlocks = 8;    // of a cluster, the most that every chip with clusters takes
constexpr int kClusterPrefix = 131072;  // longest prompt that few sets of 8 blocks are faster for

/// The decision about the count, taken level by level by the last block of each.
struct VoteState {
  unsigned long long limit;      // mass that may be dropped, fixed point
  unsigned long long base_mass;  // mass of the tokens below the current prefix
  uint32_t base_count;
  uint32_t prefix;  // bits of the cut found so far
  uint32_t tickets[kSelectLevels];
  uint32_t invalid;     // a score is not in [0, 2]
  uint32_t keep_all;    // decided: dense
  uint32_t keep_count;  // decided: K, prefix tokens a set keeps
};
/// A set after level i: the leading bits of its K-th largest key, and how many of the tokens that
/// share them belong to it.
struct SetState {
  uint32_t prefix;
  uint32_t need;
};
struct OrderCount {
  uint32_t above;
  uint32_t equal;
};

struct SelectArgs {
  Values scores;  // [P, Hq]
  Sets out;
  int32_t num_heads;
  int32_t num_sets;
  int32_t prefix_len;  // P
  int32_t k_len;       // Tk
  int32_t min_tokens;
  int32_t fixed_count;  // K when the share is fixed, else -1
  double coverage;
  double mass_scale;  // 2^e
  int32_t order_blocks;
  bool clusters;           // the kernels of sm90/select.cu
  int32_t cluster_tokens;  // of a block in a cluster, a multiple of kOrderTokens
  // Workspace; the first four are zero at the start of a call.
  VoteState* vote;
  uint32_t* vote_tokens;          // [4096] histogram of the vote
  unsigned long long* vote_mass;  // [4096]
  uint32_t* set_tokens;           // [S, 4096]
  SetState* set_state;            // [3, S]
  uint32_t* vote_keys;            // [P] bits of g
  OrderCount* order;              // [S, order_blocks]
};

/// Bytes of workspace for one sequence, and the arguments that point into it.
size_t select_scratch_bytes(int32_t prefix_len, int32_t num_sets);
void place_select_scratch(SelectArgs& args, void* scratch);

tsp_status_t launch_select(const SelectArgs& args, cudaStream_t stream);
/// Its part behind the clearing, where args.clusters says so (sm_90).
tsp_status_t launch_cluster_select(const SelectArgs& args, cudaStream_t stream);
/// Lists and count of one sequence, wherever `out` wants them. Without lists `in` is every token.
tsp_status_t launch_copy_sets(const Sets& in, const Sets& out, int32_t num_sets, int32_t k_len,
                              cudaStream_t stream);

/// tsp_prefill_params_t::tally of one sequence. Without a count everything is kept.
struct TallyTask {
  Sets sets;
  int32_t q_len;
  int32_t k_len;
  int32_t near;  // keys that a left-out query sees
  int64_t* tally;
};
tsp_status_t launch_tally(const TallyTask& task, int32_t num_sets, cudaStream_t stream);

}  // namespace tsp::cuda
