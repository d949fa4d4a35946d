// SPDX-License-Identifier: MIT
// select on clusters of eight blocks, one for the vote and one for each set: their barrier takes
// the place of the end of a kernel, and they read each other's histograms where those are, in
// shared memory. What needs no vote is done while it is under way.
#include <algorithm>

#include "cuda/select/select_steps.cuh"
#include "cuda/select/sm90/own_keys.cuh"
#include "cuda/sm90/cluster.cuh"

namespace tsp::cuda {
namespace {

/// The i-th block to read from: each begins with itself, so that they do not all ask the same one.
__device__ __forceinline__ int in_turn(int i) {
  return (static_cast<int>(blockIdx.x) + i) % kClusterBlocks;
}
/// Neighbouring bins, added up over the blocks of the cluster.
template <int kCount>
__device__ __forceinline__ void sum_bins(const uint32_t* own, uint32_t (&sum)[kCount]) {
  uint32_t words[kClusterBlocks][kCount];
#pragma unroll
  for (int i = 0; i < kClusterBlocks; ++i) load_remote(own, in_turn(i), words[i]);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    sum[i] = 0;
#pragma unroll
    for (int from = 0; from < kClusterBlocks; ++from) sum[i] += words[from][i];
  }
}

template <typename Shared>
constexpr int kWordsOf = sizeof(Shared) / sizeof(uint32_t);
/// What a block keeps in shared memory, all zero.
template <typename Shared>
__device__ __forceinline__ Shared& zeroed(uint32_t* words) {
  for (int i = static_cast<int>(threadIdx.x); i < kWordsOf<Shared>; i += kSelectThreads) {
    words[i] = 0;
  }
  __syncthreads();
  return *reinterpret_cast<Shared*>(words);
}

/// A histogram for each step, so that a block may go on while others still read its last one.
struct alignas(16) VoteShared {
  VoteHistogram<1> level1;
  uint32_t level2[level_bins(2)];  // a bin is one key, whose mass is known
  VoteState vote;
};

/// Levels 1 and 2 of the vote.
__device__ void decide_lower_levels(const SelectArgs& a, const OwnKeys& keys, VoteShared& s) {
  const uint32_t top = s.vote.prefix;
  keys.for_each([&](uint32_t key) {
    if (key >> level_shift(0) == top) s.level1.add(a, key);
  });
  sync_cluster();
  const int first = static_cast<int>(threadIdx.x) * kThreadBins<1>;
  VoteBins<1> bins{};
  sum_bins(&s.level1.count[first], bins.count);
#pragma unroll
  for (int turn = 0; turn < kClusterBlocks; ++turn) {
    uint32_t low[kThreadBins<1>], high[kThreadBins<1>];
    load_remote(&s.level1.mass_low[first], in_turn(turn), low);
    load_remote(&s.level1.mass_high[first], in_turn(turn), high);
#pragma unroll
    for (int i = 0; i < kThreadBins<1>; ++i) {
      bins.mass[i] += static_cast<unsigned long long>(high[i]) << 32 | low[i];
    }
  }
  decide_vote<1>(a, bins, false, s.vote);
  __syncthreads();
  const uint32_t prefix = s.vote.prefix;
  keys.for_each([&](uint32_t key) {
    if (key >> level_shift(1) == prefix) atomicAdd(&s.level2[key & 1023u], 1u);
  });
  sync_cluster();
  VoteBins<2> last;
  sum_bins(&s.level2[first], last.count);
#pragma unroll
  for (int i = 0; i < kThreadBins<2>; ++i) {
    last.mass[i] = last.count[i] * mass_of(a, prefix << 10 | static_cast<uint32_t>(first + i));
  }
  decide_vote<2>(a, last, false, s.vote);
}

/// The vote behind what vote_kernel() counted. Grid: one cluster.
__global__ void __cluster_dims__(kClusterBlocks, 1, 1) __launch_bounds__(kSelectThreads)
    cluster_vote_kernel(const __grid_constant__ SelectArgs a) {
  allow_next();
  extern __shared__ __align__(16) uint32_t s_words[];
  VoteShared& s = zeroed<VoteShared>(s_words);
  const OwnKeys keys = own_keys(a, kVote, s_words + kWordsOf<VoteShared>);
  wait_previous();
  keys.load();
  decide_vote<0>(a, load_vote_bins<0>(a), __ldcg(&a.vote->invalid) != 0, s.vote);
  __syncthreads();
  if (s.vote.keep_all == 0 && a.fixed_count < 0) decide_lower_levels(a, keys, s);
  arrive_cluster();
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    a.vote->keep_all = s.vote.keep_all;
    a.vote->keep_count = s.vote.keep_count;
    write_kept(a, s.vote);
  }
  await_cluster();  // a block must not end while others read from it
}

struct alignas(16) SetShared {
  uint32_t level0[level_bins(0)];
  uint32_t lower[kSelectLevels - 1][level_bins(1)];
  uint32_t order[2];         // an OrderCount of the block,
  OrderCount warps[kWarps];  // and of each warp
};

/// Level 0 of a set's histogram, by its cluster: this thread's bins, the highest with thread 0.
__device__ void count_set(const OwnKeys& keys, SetShared& s, uint32_t (&bins)[kThreadBins<0>]) {
  keys.load();
  // Invalid scores keep everything; the mask only stops them from leaving the histogram.
  keys.for_each_run(
      [&](uint32_t bin, uint32_t count) { atomicAdd(&s.level0[bin & 2047u], count); });
  sync_cluster();
  sum_bins(&s.level0[first_bin_from_top<kThreadBins<0>>()], bins);
}
/// Level 1 or 2, and the descent into it.
__device__ __forceinline__ SetState set_level(const OwnKeys& keys, SetState above, int shift,
                                              uint32_t* s_count) {
  keys.for_each([&](uint32_t key) {
    if (key >> (shift + 10) == above.prefix) atomicAdd(&s_count[key >> shift & 1023u], 1u);
  });
  sync_cluster();
  uint32_t bins[kThreadBins<1>];
  sum_bins(&s_count[first_bin_from_top<kThreadBins<1>>()], bins);
  return descend_bins(above, bins);
}

/// The vote's keys and its level 0. Grid (ceil(P / 512)).
__global__ void __launch_bounds__(kSelectThreads)
    vote_kernel(const __grid_constant__ SelectArgs a) {
  allow_next();
  __shared__ VoteHistogram<0> s;
  s.clear();
  const int token = static_cast<int>(blockIdx.x * kVoteTokens + threadIdx.x);
  // NOTE: scores are read while histograms are cleared: that kernel lets this one start only after
  // what came before it has finished.
  Vote vote{};
  if (token < a.prefix_len) vote = load_vote(a, token);
  wait_previous();
  if (token < a.prefix_len) put_vote(a, s, token, vote);
  __syncthreads();
  s.add_to_global(a);
}

/// The sets, a cluster each. Grid (8, S).
__global__ void __cluster_dims__(kClusterBlocks, 1, 1) __launch_bounds__(kSelectThreads)
    cluster_sets_kernel(const __grid_constant__ SelectArgs a) {
  allow_next();
  extern __shared__ __align__(16) uint32_t s_words[];
  SetShared& s = zeroed<SetShared>(s_words);
  const int rank = static_cast<int>(blockIdx.x);
  const int set = static_cast<int>(blockIdx.y);
  const OwnKeys keys = own_keys(a, set, s_words + kWordsOf<SetShared>);
  const int first = rank * a.cluster_tokens;
  const int last = min(first + a.cluster_tokens, a.k_len);
  // NOTE: scores are read while the kernels before are under way: what came before all of them has
  // finished. The keys of a single set are the votes.
  if (a.num_sets == 1) wait_previous();
  uint32_t top_bins[kThreadBins<0>];
  count_set(keys, s, top_bins);
  wait_previous();
  if (a.vote->keep_all != 0) {
    arrive_cluster();
    for (int token = first + static_cast<int>(threadIdx.x); token < last; token += kSelectThreads) {
      a.out.of_set(set)[token] = token;
    }
    await_cluster();  // a block must not end while others read from it
    return;
  }
  const uint32_t keep = a.vote->keep_count;
  SetState found = descend_bins({0u, keep}, top_bins);
  // NOTE: a kernel that runs once waits for its instructions; the second level finds its own there.
#pragma unroll 1
  for (int level = 1; level < kSelectLevels; ++level) {
    found = set_level(keys, found, level_shift(level), s.lower[level - 1]);
  }
  // A warp owns a stretch, in rounds of 32 tokens.
  constexpr int kRound = 32 * kOrderRounds;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int stretch = a.cluster_tokens / kWarps;
  const int begin = first + warp * stretch;
  const int end = min(begin + stretch, last);
  OrderCount own{0, 0};
  for (int token = begin + lane; token < end; token += kRound) {
    uint32_t of[kOrderRounds];
    keys.read(token, 32, of);
#pragma unroll
    for (int i = 0; i < kOrderRounds; ++i) {
      if (of[i] != kNoKey) count_key(own, of[i], found.prefix);
    }
  }
  __syncwarp();
  own = sum_of_warp(own);
  if (lane == 0) {
    s.warps[warp] = own;
    atomicAdd(&s.order[0], own.above);
    atomicAdd(&s.order[1], own.equal);
  }
  sync_cluster();
  OrderCount before{0, 0};  // in the blocks and in the warps before this one
  static_assert(kClusterBlocks + kWarps <= 32);
  if (lane < rank) {
    uint32_t counts[2];
    load_remote(s.order, lane, counts);
    before = {counts[0], counts[1]};
  } else if (lane >= kClusterBlocks && lane - kClusterBlocks < warp) {
    before = s.warps[lane - kClusterBlocks];
  }
  __syncwarp();
  before = sum_of_warp(before);
  arrive_cluster();
#pragma unroll 1
  for (int token = begin + lane; token - lane < end; token += 32) {
    uint32_t key[1];
    keys.read(token, 32, key);
    write_round(a, set, token, key[0], found, keep, before);
  }
  await_cluster();  // a block must not end while others read from it
}

}  // namespace

tsp_status_t launch_cluster_select(const SelectArgs& a, cudaStream_t stream) {
  const dim3 threads(kSelectThreads);
  const auto votes = static_cast<unsigned>((a.prefix_len + kVoteTokens - 1) / kVoteTokens);
  TSP_RETURN_IF_ERROR(launch("select: votes", vote_kernel, dim3(votes), threads, 0, stream, a));
  const size_t cached = a.cluster_tokens <= kCachedTokens ? a.cluster_tokens * sizeof(uint32_t) : 0;
  TSP_RETURN_IF_ERROR(launch("select: vote", cluster_vote_kernel, dim3(kClusterBlocks), threads,
                             sizeof(VoteShared) + cached, stream, a));
  return launch("select: sets", cluster_sets_kernel,
                dim3(kClusterBlocks, static_cast<unsigned>(a.num_sets)), threads,
                sizeof(SetShared) + cached, stream, a);
}

}  // namespace tsp::cuda
