// SPDX-License-Identifier: MIT
// select: the scheme in a kernel a step. Chips with clusters of blocks do all but the clearing in
// three kernels: sm90/select.cu.
#include "cuda/select/select.h"

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/scratch.h"
#include "cuda/select/select_steps.cuh"
#include "cuda/sets.cuh"

namespace tsp::cuda {
namespace {

constexpr int kSetRounds = kSetTokens / kSelectThreads;

__device__ __forceinline__ unsigned vote_blocks(const SelectArgs& a) {
  return static_cast<unsigned>((a.prefix_len + kVoteTokens - 1) / kVoteTokens);
}
__device__ __forceinline__ unsigned set_blocks(const SelectArgs& a) {
  return static_cast<unsigned>((a.prefix_len + kSetTokens - 1) / kSetTokens);
}

/// Zeroes `count` words. A memset would not start while the kernel before it drains.
__global__ void __launch_bounds__(kSelectThreads) clear_kernel(uint32_t* words, const int count) {
  wait_previous();
  allow_next();  // it may then read what came before this kernel
  const int stride = static_cast<int>(gridDim.x) * kSelectThreads;
  for (int i = static_cast<int>(blockIdx.x * kSelectThreads + threadIdx.x); i < count;
       i += stride) {
    words[i] = 0;
  }
}

/// Level 0 of the vote and of every set. Grid: vote_blocks + S * set_blocks.
__global__ void __launch_bounds__(kSelectThreads)
    first_level_kernel(const __grid_constant__ SelectArgs a) {
  await_previous();
  __shared__ VoteHistogram<0> s;
  s.clear();
  const unsigned votes = vote_blocks(a);
  if (blockIdx.x < votes) {
    const int token = static_cast<int>(blockIdx.x * kVoteTokens + threadIdx.x);
    if (token < a.prefix_len) put_vote(a, s, token, load_vote(a, token));
    finish_vote(a, s, votes);
    return;
  }
  const unsigned index = blockIdx.x - votes;
  const int set = static_cast<int>(index / set_blocks(a));
  const int begin = static_cast<int>(index % set_blocks(a)) * kSetTokens;
  const int first = begin + static_cast<int>(threadIdx.x);
  uint32_t keys[kSetRounds];
  load_keys(a, set, first, kSelectThreads, a.prefix_len, keys);
#pragma unroll
  for (int i = 0; i < kSetRounds; ++i) {
    if (first + i * kSelectThreads < a.prefix_len) {
      // Invalid scores keep everything; the mask only stops them from leaving the histogram.
      atomicAdd(&s.count[(keys[i] >> level_shift(0)) & 2047u], 1u);
    }
  }
  __syncthreads();
  add_to_global(s.count, a.set_tokens + int64_t{set} * kSelectBins, level_bins(0));
}

/// Levels 1 and 2 of the vote. Grid: vote_blocks.
template <int kLevel>
__global__ void __launch_bounds__(kSelectThreads)
    vote_level_kernel(const __grid_constant__ SelectArgs a) {
  await_previous();
  __shared__ VoteHistogram<kLevel> s;
  if (a.vote->keep_all != 0) return;
  s.clear();
  const uint32_t prefix = a.vote->prefix;
  const int token = static_cast<int>(blockIdx.x * kVoteTokens + threadIdx.x);
  if (token < a.prefix_len) {
    const uint32_t key = a.vote_keys[token];
    if (key >> level_shift(kLevel - 1) == prefix) s.add(a, key);
  }
  finish_vote(a, s, vote_blocks(a));
}

/// From what the kernel before left; block 0 leaves the result for the next one.
template <int kLevel>
__device__ SetState descend_from(const SelectArgs& a, int set) {
  const SetState above =
      kLevel == 0 ? SetState{0u, a.vote->keep_count} : a.set_state[(kLevel - 1) * a.num_sets + set];
  const SetState result = descend_set<kLevel>(a, set, above);
  if (blockIdx.x == 0 && threadIdx.x == 0) a.set_state[kLevel * a.num_sets + set] = result;
  return result;
}

/// Levels 1 and 2 of the sets. Grid (set_blocks, S).
template <int kLevel>
__global__ void __launch_bounds__(kSelectThreads)
    set_level_kernel(const __grid_constant__ SelectArgs a) {
  await_previous();
  __shared__ uint32_t s_count[level_bins(kLevel)];
  if (a.vote->keep_all != 0) return;
  const int set = static_cast<int>(blockIdx.y);
  for (int bin = static_cast<int>(threadIdx.x); bin < level_bins(kLevel); bin += kSelectThreads) {
    s_count[bin] = 0;
  }
  const int first = static_cast<int>(blockIdx.x) * kSetTokens + static_cast<int>(threadIdx.x);
  uint32_t keys[kSetRounds];  // under way while the level above is decided
  load_known_keys(a, set, first, kSelectThreads, a.prefix_len, keys);
  const SetState found = descend_from<kLevel - 1>(a, set);  // synchronises
#pragma unroll
  for (int i = 0; i < kSetRounds; ++i) {
    if (first + i * kSelectThreads < a.prefix_len &&
        keys[i] >> level_shift(kLevel - 1) == found.prefix) {
      atomicAdd(&s_count[keys[i] >> level_shift(kLevel) & 1023u], 1u);
    }
  }
  __syncthreads();
  add_to_global(s_count, a.set_tokens + int64_t{set} * kSelectBins + level_first_bin(kLevel),
                level_bins(kLevel));
}

/// How many keys of each stretch lie above the threshold, and at it. Grid (order_blocks, S).
__global__ void __launch_bounds__(kSelectThreads)
    order_count_kernel(const __grid_constant__ SelectArgs a) {
  await_previous();
  if (a.vote->keep_all != 0) return;
  const int set = static_cast<int>(blockIdx.y);
  const int first = static_cast<int>(blockIdx.x) * kOrderTokens + static_cast<int>(threadIdx.x);
  uint32_t keys[kOrderRounds];
  load_known_keys(a, set, first, kSelectThreads, a.prefix_len, keys);
  const uint32_t threshold = descend_from<kSelectLevels - 1>(a, set).prefix;
  OrderCount own{0, 0};
#pragma unroll
  for (int i = 0; i < kOrderRounds; ++i) {
    if (first + i * kSelectThreads < a.prefix_len) count_key(own, keys[i], threshold);
  }
  const OrderCount total = sum_counts(own);
  if (threadIdx.x == 0) a.order[set * a.order_blocks + static_cast<int>(blockIdx.x)] = total;
}

/// Writes indices in ascending order. Grid (ceil(Tk / 2048), S).
__global__ void __launch_bounds__(kSelectThreads)
    order_write_kernel(const __grid_constant__ SelectArgs a) {
  await_previous();
  const int set = static_cast<int>(blockIdx.y);
  const int block = static_cast<int>(blockIdx.x);
  if (block == 0 && set == 0 && threadIdx.x == 0) write_kept(a, *a.vote);
  if (a.vote->keep_all != 0) {
    for (int i = static_cast<int>(threadIdx.x); i < kOrderTokens; i += kSelectThreads) {
      const int token = block * kOrderTokens + i;
      if (token < a.k_len) a.out.of_set(set)[token] = token;
    }
    return;
  }
  OrderCount before{0, 0};  // in the stretches before this one
  for (int i = static_cast<int>(threadIdx.x); i < min(block, a.order_blocks); i += kSelectThreads) {
    const OrderCount count = a.order[set * a.order_blocks + i];
    before.above += count.above;
    before.equal += count.equal;
  }
  before = sum_counts(before);
  const SetState found = a.set_state[(kSelectLevels - 1) * a.num_sets + set];
  // A warp owns 32 * kOrderRounds tokens in a row.
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int first =
      block * kOrderTokens + warp * 32 * kOrderRounds + static_cast<int>(threadIdx.x) % 32;
  uint32_t keys[kOrderRounds];
  load_known_keys(a, set, first, 32, a.prefix_len, keys);
  OrderCount own{0, 0};
#pragma unroll
  for (int i = 0; i < kOrderRounds; ++i) {
    if (first + i * 32 < a.prefix_len) count_key(own, keys[i], found.prefix);
  }
  own = sum_of_warp(own);
  __shared__ OrderCount s_warps[kWarps];
  if (threadIdx.x % 32 == 0) s_warps[warp] = own;
  __syncthreads();
  for (int w = 0; w < warp; ++w) {
    before.above += s_warps[w].above;
    before.equal += s_warps[w].equal;
  }
#pragma unroll
  for (int i = 0; i < kOrderRounds; ++i) {
    write_round(a, set, first + i * 32, keys[i], found, a.vote->keep_count, before);
  }
}

struct CopySetsArgs {
  Sets in;
  Sets out;
  int32_t k_len;
};
/// Grid (ceil(Tk / 512), S).
__global__ void __launch_bounds__(kSelectThreads)
    copy_sets_kernel(const __grid_constant__ CopySetsArgs a) {
  await_previous();
  const int set = static_cast<int>(blockIdx.y);
  const int entry = static_cast<int>(blockIdx.x * kSelectThreads + threadIdx.x);
  const int n = num_kept(a.in, a.k_len);
  if (entry == 0 && set == 0 && a.out.kept != nullptr) *a.out.kept = n;
  if (entry < n && a.out.indices != nullptr) {
    a.out.of_set(set)[entry] = position_of(list_of(a.in, set), entry);
  }
}

unsigned blocks(int64_t count, int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

/// Returns the bytes that must be zero at the start; clusters count their sets by themselves.
size_t place(SelectArgs& args, Scratch& scratch) {
  args.vote = scratch.take<VoteState>(1);
  args.vote_tokens = scratch.take<uint32_t>(kSelectBins);
  args.vote_mass = scratch.take<unsigned long long>(kSelectBins);
  const size_t votes = scratch.used();
  args.set_tokens = scratch.take<uint32_t>(int64_t{args.num_sets} * kSelectBins);
  const size_t zeroed = args.clusters ? votes : scratch.used();
  args.set_state = scratch.take<SetState>(int64_t{kSelectLevels} * args.num_sets);
  args.vote_keys = scratch.take<uint32_t>(args.prefix_len);
  args.order_blocks = static_cast<int32_t>(blocks(args.prefix_len, kOrderTokens));
  args.order = scratch.take<OrderCount>(int64_t{args.num_sets} * args.order_blocks);
  return zeroed;
}

}  // namespace

size_t select_scratch_bytes(int32_t prefix_len, int32_t num_sets) {
  SelectArgs args{};
  args.prefix_len = prefix_len;
  args.num_sets = num_sets;
  Scratch scratch(nullptr);
  place(args, scratch);
  return scratch.used();
}

void place_select_scratch(SelectArgs& args, void* scratch_memory) {
  Scratch scratch(scratch_memory);
  place(args, scratch);
}

tsp_status_t launch_select(const SelectArgs& a, cudaStream_t stream) {
  SelectArgs sizes = a;
  Scratch counter(nullptr);
  const size_t zeroed = place(sizes, counter);
  const dim3 threads(kSelectThreads);
  const auto words = static_cast<int>(zeroed / sizeof(uint32_t));
  TSP_RETURN_IF_ERROR(launch("select: clear", clear_kernel,
                             dim3(std::min(blocks(words, kSelectThreads), 128u)), threads, 0,
                             stream, reinterpret_cast<uint32_t*>(a.vote), words));
  if (a.clusters) return launch_cluster_select(a, stream);
  const unsigned votes = blocks(a.prefix_len, kVoteTokens);
  const unsigned per_set = blocks(a.prefix_len, kSetTokens);
  const auto sets = static_cast<unsigned>(a.num_sets);
  const dim3 set_grid(per_set, sets);
  TSP_RETURN_IF_ERROR(launch("select: first level", first_level_kernel,
                             dim3(votes + sets * per_set), threads, 0, stream, a));
  if (a.fixed_count < 0) {
    TSP_RETURN_IF_ERROR(
        launch("select: vote level 1", vote_level_kernel<1>, dim3(votes), threads, 0, stream, a));
    TSP_RETURN_IF_ERROR(
        launch("select: vote level 2", vote_level_kernel<2>, dim3(votes), threads, 0, stream, a));
  }
  TSP_RETURN_IF_ERROR(
      launch("select: set level 1", set_level_kernel<1>, set_grid, threads, 0, stream, a));
  TSP_RETURN_IF_ERROR(
      launch("select: set level 2", set_level_kernel<2>, set_grid, threads, 0, stream, a));
  TSP_RETURN_IF_ERROR(launch("select: order count", order_count_kernel,
                             dim3(blocks(a.prefix_len, kOrderTokens), sets), threads, 0, stream,
                             a));
  return launch("select: order write", order_write_kernel,
                dim3(blocks(a.k_len, kOrderTokens), sets), threads, 0, stream, a);
}

tsp_status_t launch_copy_sets(const Sets& in, const Sets& out, int32_t num_sets, int32_t k_len,
                              cudaStream_t stream) {
  const dim3 grid(blocks(k_len, kSelectThreads), static_cast<unsigned>(num_sets));
  return launch("copy sets", copy_sets_kernel, grid, dim3(kSelectThreads), 0, stream,
                CopySetsArgs{in, out, k_len});
}

}  // namespace tsp::cuda
