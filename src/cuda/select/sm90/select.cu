// SPDX-License-Identifier: MIT
// select behind its first level, on clusters of eight blocks: their barrier takes the place of the
// end of a kernel, so two kernels do what are six without.
#include <algorithm>

#include "cuda/select/select_steps.cuh"

namespace tsp::cuda {
namespace {

constexpr int kCachedTokens = 16384;  // keys of a block that stay in shared memory
constexpr int kAtOnce = 8;            // keys of a thread that are under way together
constexpr uint32_t kNoKey = ~0u;      // its leading bits are no prefix: no key has the sign

/// barrier.cluster: every thread of the cluster has arrived, and sees what the others wrote.
__device__ __forceinline__ void sync_cluster() {
  __threadfence();
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;\n" ::: "memory");
}

/// A level of the vote, by one cluster.
template <int kLevel>
__device__ void vote_level(const SelectArgs& a, VoteHistogram& s) {
  const int rank = static_cast<int>(blockIdx.x);
  clear<kLevel>(s);
  const uint32_t prefix = __ldcg(&a.vote->prefix);
  constexpr int kStep = kClusterBlocks * kSelectThreads;
  for (int first = rank * kSelectThreads + static_cast<int>(threadIdx.x); first < a.prefix_len;
       first += kAtOnce * kStep) {
    uint32_t keys[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int token = first + i * kStep;
      keys[i] = token < a.prefix_len ? a.vote_keys[token] : kNoKey;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (keys[i] >> level_shift(kLevel - 1) != prefix) continue;
      count_vote(s, static_cast<int>(keys[i] >> level_shift(kLevel) & 1023u), mass_of(a, keys[i]));
    }
  }
  __syncthreads();
  add_vote_to_global<kLevel>(a, s);
  sync_cluster();
  if (rank == 0) decide_vote<kLevel>(a);
  sync_cluster();
}

/// Levels 1 and 2 of the vote. Grid: one cluster.
__global__ void __cluster_dims__(kClusterBlocks, 1, 1) __launch_bounds__(kSelectThreads)
    cluster_vote_kernel(const __grid_constant__ SelectArgs a) {
  wait_previous();
  allow_next();  // it may then read what the first level wrote
  __shared__ VoteHistogram s;
  if (a.vote->keep_all != 0) return;
  vote_level<1>(a, s);
  vote_level<2>(a, s);
}

/// Keys of the tokens that a block owns: read once where they fit.
struct OwnKeys {
  const SelectArgs& a;
  int set, begin, end;  // tokens of the prefix
  uint32_t* cached;     // [end - begin], or null

  __device__ void load() const {
    if (cached == nullptr) return;
    for (int first = begin + static_cast<int>(threadIdx.x); first < end;
         first += kAtOnce * kSelectThreads) {
      uint32_t keys[kAtOnce];
      load_known_keys(a, set, first, kSelectThreads, end, keys);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int token = first + i * kSelectThreads;
        if (token < end) cached[token - begin] = keys[i];
      }
    }
    __syncthreads();
  }
  /// Of tokens `first`, `first` + `step`, ...; kNoKey where there is none.
  template <int kCount>
  __device__ void read(int first, int step, uint32_t (&keys)[kCount]) const {
    if (cached == nullptr) load_known_keys(a, set, first, step, end, keys);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int token = first + i * step;
      if (token >= end) {
        keys[i] = kNoKey;
      } else if (cached != nullptr) {
        keys[i] = cached[token - begin];
      }
    }
  }
  /// use(key) of every key, kAtOnce after kAtOnce.
  template <typename Use>
  __device__ void for_each(Use&& use) const {
    for (int first = begin + static_cast<int>(threadIdx.x); first < end;
         first += kAtOnce * kSelectThreads) {
      uint32_t keys[kAtOnce];
      read(first, kSelectThreads, keys);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (keys[i] != kNoKey) use(keys[i]);
      }
    }
  }
};

/// Level `kLevel` of a set's histogram, by its cluster, and the descent into it.
template <int kLevel>
__device__ SetState set_level(const SelectArgs& a, const OwnKeys& keys, SetState above,
                              uint32_t* s_count) {
  for (int bin = static_cast<int>(threadIdx.x); bin < level_bins(kLevel); bin += kSelectThreads) {
    s_count[bin] = 0;
  }
  __syncthreads();
  keys.for_each([&](uint32_t key) {
    if (key >> level_shift(kLevel - 1) == above.prefix) {
      atomicAdd(&s_count[key >> level_shift(kLevel) & 1023u], 1u);
    }
  });
  __syncthreads();
  add_to_global(s_count, a.set_tokens + int64_t{keys.set} * kSelectBins + level_first_bin(kLevel),
                level_bins(kLevel));
  sync_cluster();
  return descend_set<kLevel>(a, keys.set, above);
}

/// Everything behind the first level, of one set a cluster. Grid (8, S).
__global__ void __cluster_dims__(kClusterBlocks, 1, 1) __launch_bounds__(kSelectThreads)
    cluster_sets_kernel(const __grid_constant__ SelectArgs a) {
  allow_next();
  __shared__ uint32_t s_count[level_bins(1)];
  extern __shared__ uint32_t s_keys[];
  const int rank = static_cast<int>(blockIdx.x);
  const int set = static_cast<int>(blockIdx.y);
  const int first = rank * a.cluster_tokens;
  const int last = min(first + a.cluster_tokens, a.k_len);
  const OwnKeys keys{a, set, first, min(last, a.prefix_len),
                     a.cluster_tokens <= kCachedTokens ? s_keys : nullptr};
  // NOTE: keys are read while the vote is under way: it lets this kernel start only after the first
  // level has finished. Without a vote the first level itself may still run.
  const bool early = a.fixed_count < 0;
  if (early) keys.load();
  wait_previous();
  if (rank == 0 && set == 0 && threadIdx.x == 0) write_kept(a);
  if (a.vote->keep_all != 0) {
    for (int token = first + static_cast<int>(threadIdx.x); token < last; token += kSelectThreads) {
      a.out.of_set(set)[token] = token;
    }
    return;
  }
  if (!early) keys.load();
  const uint32_t keep = a.vote->keep_count;
  SetState found = descend_set<0>(a, set, {0u, keep});
  found = set_level<1>(a, keys, found, s_count);
  found = set_level<2>(a, keys, found, s_count);

  OrderCount own{0, 0};
  keys.for_each([&](uint32_t key) { count_key(own, key, found.prefix); });
  own = sum_counts(own);
  OrderCount* counts = a.order + int64_t{set} * kClusterBlocks;
  if (threadIdx.x == 0) counts[rank] = own;
  sync_cluster();
  OrderCount before{0, 0};  // in the blocks before this one
  for (int r = 0; r < rank; ++r) {
    before.above += __ldcg(&counts[r].above);
    before.equal += __ldcg(&counts[r].equal);
  }
  for (int token = first; token < last; token += kOrderTokens) {
    const OrderCount held =
        write_block(a, set, token / kOrderTokens, found, keep, before,
                    [&](int at, uint32_t(&of)[kOrderRounds]) { keys.read(at, 32, of); });
    before.above += held.above;
    before.equal += held.equal;
  }
}

}  // namespace

tsp_status_t launch_cluster_select(const SelectArgs& a, cudaStream_t stream) {
  const dim3 threads(kSelectThreads);
  if (a.fixed_count < 0) {
    TSP_RETURN_IF_ERROR(
        launch("select: vote", cluster_vote_kernel, dim3(kClusterBlocks), threads, 0, stream, a));
  }
  const size_t cached =
      a.cluster_tokens <= kCachedTokens ? static_cast<size_t>(a.cluster_tokens) : 0;
  return launch("select: sets", cluster_sets_kernel,
                dim3(kClusterBlocks, static_cast<unsigned>(a.num_sets)), threads,
                cached * sizeof(uint32_t), stream, a);
}

}  // namespace tsp::cuda
