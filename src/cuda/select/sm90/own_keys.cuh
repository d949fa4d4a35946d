// SPDX-License-Identifier: MIT
// The keys of one block of a cluster: of a set, or of the vote.
#pragma once

#include "cuda/select/select_steps.cuh"

namespace tsp::cuda {
namespace {

constexpr int kCachedTokens = 16384;  // keys of a block that stay in shared memory
constexpr int kAtOnce = 8;            // keys of a thread that are under way together
constexpr int kVote = -1;
constexpr uint32_t kNoKey = ~0u;  // its leading bits are no prefix: no key has the sign

/// Keys of the tokens that a block owns: read once where they fit.
struct OwnKeys {
  const SelectArgs& a;
  int set;           // kVote: those of the vote
  int begin, end;    // tokens of the prefix
  uint32_t* cached;  // [end - begin], or null

  template <int kCount>
  __device__ __forceinline__ void fetch(int first, int step, uint32_t (&keys)[kCount]) const {
    if (set != kVote && a.num_sets > 1) return load_keys(a, set, first, step, end, keys);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int token = first + i * step;
      keys[i] = token < end ? a.vote_keys[token] : 0u;
    }
  }
  __device__ void load() const {
    if (cached == nullptr) return;
    for (int first = begin + static_cast<int>(threadIdx.x); first < end;
         first += kAtOnce * kSelectThreads) {
      uint32_t keys[kAtOnce];
      fetch(first, kSelectThreads, keys);
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
  __device__ __forceinline__ void read(int first, int step, uint32_t (&keys)[kCount]) const {
    if (cached == nullptr) fetch(first, step, keys);
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
  /// use(leading bits, keys) of every run of neighbours that share them, within a thread's kAtOnce:
  /// neighbours are often alike, and each atomic takes its time.
  template <typename Use>
  __device__ void for_each_run(Use&& use) const {
    for (int first = begin + static_cast<int>(threadIdx.x) * kAtOnce; first < end;
         first += kAtOnce * kSelectThreads) {
      uint32_t keys[kAtOnce];
      if (cached == nullptr) {
        fetch(first, 1, keys);
      } else {
        const auto* from = reinterpret_cast<const uint4*>(cached + (first - begin));
        const uint4 low = from[0], high = from[1];
        keys[0] = low.x, keys[1] = low.y, keys[2] = low.z, keys[3] = low.w;
        keys[4] = high.x, keys[5] = high.y, keys[6] = high.z, keys[7] = high.w;
      }
      uint32_t run = 0;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i >= end) break;
        ++run;
        const uint32_t bin = keys[i] >> level_shift(0);
        if (i + 1 < kAtOnce && first + i + 1 < end && keys[i + 1] >> level_shift(0) == bin)
          continue;
        use(bin, run);
        run = 0;
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

/// The keys of this block, whose place in shared memory begins at `cached`.
__device__ __forceinline__ OwnKeys own_keys(const SelectArgs& a, int set, uint32_t* cached) {
  const int begin = static_cast<int>(blockIdx.x) * a.cluster_tokens;
  return {a, set, begin, min(begin + a.cluster_tokens, a.prefix_len),
          a.cluster_tokens <= kCachedTokens ? cached : nullptr};
}

}  // namespace
}  // namespace tsp::cuda
