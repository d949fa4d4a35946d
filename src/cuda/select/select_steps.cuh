// SPDX-License-Identifier: MIT
// The steps of select, for kernels of kSelectThreads threads: see select.h for the scheme. Sums of
// mass are integers, so no order of blocks changes them; a warp, a block and then the whole list
// are compacted in order, so ties go to the lower position.
#pragma once

#include "cuda/launch.h"
#include "cuda/select/select.h"

namespace tsp::cuda {
namespace {

constexpr int kWarps = kSelectThreads / 32;
constexpr int kOrderRounds = kOrderTokens / kSelectThreads;
template <int kLevel>
constexpr int kThreadBins = level_bins(kLevel) / kSelectThreads;  // side by side

/// Inclusive sum over the block in thread order; `total` gets the sum of all.
template <typename T>
__device__ T block_scan(T value, T* s_warps, T& total) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const T below = __shfl_up_sync(~0u, value, step);
    if (lane >= step) value += below;
  }
  __syncthreads();  // s_warps may still be read from an earlier scan
  if (lane == 31) s_warps[warp] = value;
  __syncthreads();
  T before = 0;
  total = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before += s_warps[w];
    total += s_warps[w];
  }
  return before + value;
}

/// A thread's tokens `first`, `first` + `step`, ... below `end`: scores in a set, the f32 sums of
/// the set's heads, ascending. The 0 they start from turns a -0 into 0. All loads of a head come
/// before the first use: one after the other they would each take the way to L2.
template <int kCount>
__device__ __forceinline__ void load_keys(const SelectArgs& a, int set, int first, int step,
                                          int end, uint32_t (&keys)[kCount]) {
  float sum[kCount] = {};
#pragma unroll 4
  for (int h = 0; h < a.out.heads_per_set; ++h) {
    const int head = set * a.out.heads_per_set + h;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int token = first + i * step;
      sum[i] = __fadd_rn(sum[i], token < end ? a.scores.at(token, head) : 0.f);
    }
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) keys[i] = __float_as_uint(sum[i]);
}
/// The same once the vote is in memory: one set for all heads is the vote.
template <int kCount>
__device__ __forceinline__ void load_known_keys(const SelectArgs& a, int set, int first, int step,
                                                int end, uint32_t (&keys)[kCount]) {
  if (a.num_sets > 1) return load_keys(a, set, first, step, end, keys);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int token = first + i * step;
    keys[i] = token < end ? a.vote_keys[token] : 0u;
  }
}

__device__ __forceinline__ unsigned long long mass_of(const SelectArgs& a, uint32_t key) {
  // Exact: 24 bits times a power of two, below 2^63.
  return static_cast<unsigned long long>(static_cast<double>(__uint_as_float(key)) * a.mass_scale);
}

/// A level's bins of one thread; thread 0 has the lowest.
template <int kLevel>
struct VoteBins {
  uint32_t count[kThreadBins<kLevel>];
  unsigned long long mass[kThreadBins<kLevel>];
};
/// Bins that other blocks have added to in global memory.
template <int kLevel>
__device__ VoteBins<kLevel> load_vote_bins(const SelectArgs& a) {
  VoteBins<kLevel> bins;
  const int first = level_first_bin(kLevel) + static_cast<int>(threadIdx.x) * kThreadBins<kLevel>;
#pragma unroll
  for (int i = 0; i < kThreadBins<kLevel>; ++i) {
    bins.count[i] = __ldcg(a.vote_tokens + first + i);
    bins.mass[i] = __ldcg(a.vote_mass + first + i);
  }
  return bins;
}

/// A block finds the bin of level `kLevel` in which the cumulative mass reaches the limit; `vote`
/// holds what the level above found, and gets what this one finds: for the other threads behind the
/// next barrier.
template <int kLevel>
__device__ void decide_vote(const SelectArgs& a, const VoteBins<kLevel>& bins, bool invalid,
                            VoteState& vote) {
  __shared__ uint32_t s_count[kWarps];
  __shared__ unsigned long long s_mass[kWarps];
  __shared__ unsigned long long s_limit;
  uint32_t count = 0;
  unsigned long long mass = 0;
#pragma unroll
  for (int i = 0; i < kThreadBins<kLevel>; ++i) {
    count += bins.count[i];
    mass += bins.mass[i];
  }
  uint32_t total_count;
  unsigned long long total_mass;
  const uint32_t count_through = block_scan(count, s_count, total_count);
  const unsigned long long mass_through = block_scan(mass, s_mass, total_mass);
  const unsigned long long base_mass = kLevel == 0 ? 0 : vote.base_mass;
  const uint32_t base_count = kLevel == 0 ? 0 : vote.base_count;
  const uint32_t prefix_above = kLevel == 0 ? 0 : vote.prefix << 10;
  if (threadIdx.x == 0) {
    s_limit =
        kLevel == 0
            ? static_cast<unsigned long long>(ceil(a.coverage * static_cast<double>(total_mass)))
            : vote.limit;
  }
  __syncthreads();  // and the state above has been read by all
  const unsigned long long limit = s_limit;
  if (kLevel == 0) {
    const bool fixed = a.fixed_count >= 0;
    if (threadIdx.x == 0) {
      vote.limit = limit;
      vote.keep_count = static_cast<uint32_t>(max(a.fixed_count, 0));
      vote.keep_all = invalid || (fixed ? a.fixed_count >= a.prefix_len : limit == 0);
    }
    if (invalid || fixed || limit == 0) return;
  }
  // Exactly one thread crosses the limit: what lies below it has less, what it reaches does not.
  if (base_mass + mass_through < limit || base_mass + mass_through - mass >= limit) return;
  unsigned long long below_mass = base_mass + mass_through - mass;
  uint32_t below_count = base_count + count_through - count;
  uint32_t bin = threadIdx.x * kThreadBins<kLevel>;
#pragma unroll
  for (int i = 0; i < kThreadBins<kLevel> - 1; ++i) {
    if (below_mass + bins.mass[i] >= limit) break;
    below_mass += bins.mass[i];
    below_count += bins.count[i];
    ++bin;
  }
  const uint32_t prefix = prefix_above | bin;
  vote.base_mass = below_mass;
  vote.base_count = below_count;
  vote.prefix = prefix;
  if (kLevel == kSelectLevels - 1) {
    // All tokens of this bin have the same mass, more than 0: some of them fit below the limit.
    const unsigned long long each = mass_of(a, prefix);
    const uint32_t fit = static_cast<uint32_t>((limit - 1 - below_mass) / each);
    const int dropped = static_cast<int>(below_count + fit);
    const int keep = max(a.min_tokens, a.prefix_len - dropped - 1);
    vote.keep_all = dropped == 0 || keep >= a.prefix_len;
    vote.keep_count = static_cast<uint32_t>(min(keep, a.prefix_len));
  }
}

/// True in the last of `num_blocks` blocks that gets here.
__device__ bool is_last_block(uint32_t* ticket, unsigned num_blocks) {
  __shared__ bool s_last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) s_last = atomicAdd(ticket, 1u) == num_blocks - 1;
  __syncthreads();
  if (s_last) __threadfence();
  return s_last;
}

__device__ void add_to_global(const uint32_t* s_count, uint32_t* global, int bins) {
  for (int bin = static_cast<int>(threadIdx.x); bin < bins; bin += kSelectThreads) {
    if (s_count[bin] != 0) atomicAdd(global + bin, s_count[bin]);
  }
}

/// A block's part of a level, in shared memory. Mass in two words: shared memory adds 32 bits by
/// itself, but 64 bits by trying until nobody was faster, which many tokens of one bin make slow.
template <int kLevel>
struct VoteHistogram {
  uint32_t mass_low[level_bins(kLevel)];
  uint32_t mass_high[level_bins(kLevel)];
  uint32_t count[level_bins(kLevel)];

  __device__ void clear() {
    for (int bin = static_cast<int>(threadIdx.x); bin < level_bins(kLevel); bin += kSelectThreads) {
      mass_low[bin] = mass_high[bin] = count[bin] = 0;
    }
    __syncthreads();
  }
  __device__ void add(const SelectArgs& a, uint32_t key) {
    const uint32_t bin = key >> level_shift(kLevel) & (level_bins(kLevel) - 1);
    const unsigned long long mass = mass_of(a, key);
    const auto low = static_cast<uint32_t>(mass);
    atomicAdd(&count[bin], 1u);
    const uint32_t before = atomicAdd(&mass_low[bin], low);
    const uint32_t carry = before + low < before ? 1u : 0u;
    atomicAdd(&mass_high[bin], static_cast<uint32_t>(mass >> 32) + carry);
  }
  __device__ void add_to_global(const SelectArgs& a) const {
    constexpr int kFirst = level_first_bin(kLevel), kBins = level_bins(kLevel);
    tsp::cuda::add_to_global(count, a.vote_tokens + kFirst, kBins);
    for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kSelectThreads) {
      const unsigned long long mass =
          static_cast<unsigned long long>(mass_high[bin]) << 32 | mass_low[bin];
      if (mass != 0) atomicAdd(a.vote_mass + kFirst + bin, mass);
    }
  }
};

/// Sum of a token's scores over all heads; not valid where one is no score.
struct Vote {
  float sum;
  bool valid;
};
__device__ __forceinline__ Vote load_vote(const SelectArgs& a, int token) {
  Vote vote{0.f, true};
#pragma unroll 16
  for (int head = 0; head < a.num_heads; ++head) {
    const float score = a.scores.at(token, head);
    vote.valid = vote.valid && score >= 0.f && score <= 2.f;
    vote.sum = __fadd_rn(vote.sum, score);
  }
  return vote;
}
__device__ __forceinline__ void put_vote(const SelectArgs& a, VoteHistogram<0>& s, int token,
                                         Vote vote) {
  if (!vote.valid) atomicOr(&a.vote->invalid, 1u);
  const uint32_t key = vote.valid ? __float_as_uint(vote.sum) : 0u;
  a.vote_keys[token] = key;
  s.add(a, key);
}
template <int kLevel>
__device__ void finish_vote(const SelectArgs& a, const VoteHistogram<kLevel>& s,
                            unsigned num_blocks) {
  __syncthreads();
  s.add_to_global(a);
  if (!is_last_block(&a.vote->tickets[kLevel], num_blocks)) return;
  decide_vote<kLevel>(a, load_vote_bins<kLevel>(a), __ldcg(&a.vote->invalid) != 0, *a.vote);
}

/// The bin of a level that holds the K-th largest key of a set, and what is needed from it.
/// `above`: the same of the level before, {0, K} for the first. `bins`: those of this thread,
/// ascending; thread 0 has the highest. Every block of the set finds it for itself.
template <int kBins>
__device__ SetState descend_bins(SetState above, const uint32_t (&bins)[kBins]) {
  __shared__ uint32_t s_warps[kWarps];
  __shared__ SetState s_result;
  __syncthreads();                             // the result of an earlier call has been read
  if (threadIdx.x == 0) s_result = {~0u, 0u};  // nothing needed: no key is that large
  uint32_t count = 0;
#pragma unroll
  for (int i = 0; i < kBins; ++i) count += bins[i];
  uint32_t total;
  const uint32_t through = block_scan(count, s_warps, total);
  if (above.need > 0 && through >= above.need && through - count < above.need) {
    uint32_t need = above.need - (through - count);
    uint32_t bin = (kSelectThreads - threadIdx.x) * kBins - 1;
#pragma unroll
    for (int i = kBins - 1; i > 0; --i) {
      if (bins[i] >= need) break;
      need -= bins[i];
      --bin;
    }
    s_result = {above.prefix << 10 | bin, need};
  }
  __syncthreads();
  return s_result;
}
/// The lowest of the bins of this thread.
template <int kBins>
__device__ __forceinline__ int first_bin_from_top() {
  return (kSelectThreads - 1 - static_cast<int>(threadIdx.x)) * kBins;
}
/// The same from bins in global memory.
template <int kLevel>
__device__ SetState descend_set(const SelectArgs& a, int set, SetState above) {
  constexpr int kBins = kThreadBins<kLevel>;
  const uint32_t* all = a.set_tokens + int64_t{set} * kSelectBins + level_first_bin(kLevel);
  uint32_t bins[kBins];
#pragma unroll
  for (int i = 0; i < kBins; ++i) bins[i] = __ldcg(all + first_bin_from_top<kBins>() + i);
  return descend_bins(above, bins);
}

/// How many keys of a stretch lie above the threshold, and at it.
__device__ __forceinline__ void count_key(OrderCount& count, uint32_t key, uint32_t threshold) {
  count.above += key > threshold ? 1u : 0u;
  count.equal += key == threshold ? 1u : 0u;
}
/// The sum of all threads' counts, in every thread.
__device__ OrderCount sum_counts(OrderCount count) {
  __shared__ uint32_t s_above[kWarps], s_equal[kWarps];
  OrderCount total;
  block_scan(count.above, s_above, total.above);
  block_scan(count.equal, s_equal, total.equal);
  return total;
}

/// The sum over a warp, in every lane.
__device__ __forceinline__ OrderCount sum_of_warp(OrderCount count) {
  return {__reduce_add_sync(~0u, count.above), __reduce_add_sync(~0u, count.equal)};
}

/// A warp writes the winners among 32 tokens behind those of `before`, in order, and adds them to
/// it; the window is always in.
__device__ __forceinline__ void write_round(const SelectArgs& a, int set, int token, uint32_t key,
                                            SetState found, uint32_t keep, OrderCount& before) {
  int32_t* out = a.out.of_set(set);
  const uint32_t lower_lanes = (1u << threadIdx.x % 32) - 1u;
  const bool valid = token < a.prefix_len;
  const bool above = valid && key > found.prefix, equal = valid && key == found.prefix;
  const uint32_t is_above = __ballot_sync(~0u, above), is_equal = __ballot_sync(~0u, equal);
  const uint32_t above_before = before.above + __popc(is_above & lower_lanes);
  const uint32_t equal_before = before.equal + __popc(is_equal & lower_lanes);
  if (above || (equal && equal_before < found.need)) {
    out[above_before + min(equal_before, found.need)] = token;
  }
  if (!valid && token < a.k_len) out[keep + static_cast<uint32_t>(token - a.prefix_len)] = token;
  before.above += __popc(is_above);
  before.equal += __popc(is_equal);
}

/// The number of tokens of each set, once it is decided.
__device__ __forceinline__ void write_kept(const SelectArgs& a, const VoteState& vote) {
  *a.out.kept =
      vote.keep_all != 0 ? a.k_len : static_cast<int32_t>(vote.keep_count) + a.k_len - a.prefix_len;
}

}  // namespace
}  // namespace tsp::cuda
