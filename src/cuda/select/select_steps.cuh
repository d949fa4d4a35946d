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

/// The last block of level `level` finds the bin in which the cumulative mass reaches the limit.
template <int kLevel>
__device__ void decide_vote(const SelectArgs& a) {
  __shared__ uint32_t s_count[kWarps];
  __shared__ unsigned long long s_mass[kWarps];
  __shared__ unsigned long long s_limit;
  constexpr int kPerThread = level_bins(kLevel) / kSelectThreads;
  VoteState& vote = *a.vote;
  const int first = level_first_bin(kLevel) + static_cast<int>(threadIdx.x) * kPerThread;
  uint32_t count = 0;
  unsigned long long mass = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    count += __ldcg(a.vote_tokens + first + i);
    mass += __ldcg(a.vote_mass + first + i);
  }
  uint32_t total_count;
  unsigned long long total_mass;
  const uint32_t count_through = block_scan(count, s_count, total_count);
  const unsigned long long mass_through = block_scan(mass, s_mass, total_mass);
  const unsigned long long base_mass = kLevel == 0 ? 0 : vote.base_mass;
  const uint32_t base_count = kLevel == 0 ? 0 : vote.base_count;
  if (threadIdx.x == 0) {
    s_limit =
        kLevel == 0
            ? static_cast<unsigned long long>(ceil(a.coverage * static_cast<double>(total_mass)))
            : vote.limit;
  }
  __syncthreads();  // and the state above has been read by all
  const unsigned long long limit = s_limit;
  if (kLevel == 0) {
    const bool invalid = __ldcg(&vote.invalid) != 0;
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
  int bin = first;
  while (below_mass + __ldcg(a.vote_mass + bin) < limit) {
    below_mass += __ldcg(a.vote_mass + bin);
    below_count += __ldcg(a.vote_tokens + bin);
    ++bin;
  }
  const uint32_t prefix_above = kLevel == 0 ? 0 : vote.prefix << 10;
  const uint32_t prefix = prefix_above | static_cast<uint32_t>(bin - level_first_bin(kLevel));
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

/// Mass in two words: shared memory adds 32 bits by itself, but 64 bits by trying until nobody was
/// faster, which many tokens of one bin make slow.
struct VoteHistogram {
  uint32_t mass_low[level_bins(0)];
  uint32_t mass_high[level_bins(0)];
  uint32_t count[level_bins(0)];

  __device__ unsigned long long mass(int bin) const {
    return static_cast<unsigned long long>(mass_high[bin]) << 32 | mass_low[bin];
  }
};

template <int kLevel>
__device__ void clear(VoteHistogram& s) {
  for (int bin = static_cast<int>(threadIdx.x); bin < level_bins(kLevel); bin += kSelectThreads) {
    s.mass_low[bin] = s.mass_high[bin] = s.count[bin] = 0;
  }
  __syncthreads();
}
__device__ void count_vote(VoteHistogram& s, int bin, unsigned long long mass) {
  atomicAdd(&s.count[bin], 1u);
  const auto low = static_cast<uint32_t>(mass);
  const uint32_t before = atomicAdd(&s.mass_low[bin], low);
  const uint32_t carry = before + low < before ? 1u : 0u;
  atomicAdd(&s.mass_high[bin], static_cast<uint32_t>(mass >> 32) + carry);
}
template <int kLevel>
__device__ void add_vote_to_global(const SelectArgs& a, const VoteHistogram& s) {
  add_to_global(s.count, a.vote_tokens + level_first_bin(kLevel), level_bins(kLevel));
  for (int bin = static_cast<int>(threadIdx.x); bin < level_bins(kLevel); bin += kSelectThreads) {
    const unsigned long long mass = s.mass(bin);
    if (mass != 0) atomicAdd(a.vote_mass + level_first_bin(kLevel) + bin, mass);
  }
}
template <int kLevel>
__device__ void finish_vote(const SelectArgs& a, const VoteHistogram& s, unsigned num_blocks) {
  __syncthreads();
  add_vote_to_global<kLevel>(a, s);
  if (is_last_block(&a.vote->tickets[kLevel], num_blocks)) decide_vote<kLevel>(a);
}

/// The bin of level `kLevel` that holds the K-th largest key of a set, and what is needed from it.
/// `above`: the same of the level before. Every block of the set finds it for itself.
template <int kLevel>
__device__ SetState descend_set(const SelectArgs& a, int set, SetState above) {
  __shared__ uint32_t s_warps[kWarps];
  __shared__ SetState s_result;
  constexpr int kPerThread = level_bins(kLevel) / kSelectThreads;
  __syncthreads();                             // the result of an earlier call has been read
  if (threadIdx.x == 0) s_result = {~0u, 0u};  // nothing needed: no key is that large
  const uint32_t* bins = a.set_tokens + int64_t{set} * kSelectBins + level_first_bin(kLevel);
  // Thread 0 has the highest bins.
  const int top = level_bins(kLevel) - 1 - static_cast<int>(threadIdx.x) * kPerThread;
  uint32_t count = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) count += __ldcg(bins + top - i);
  uint32_t total;
  const uint32_t through = block_scan(count, s_warps, total);
  if (above.need > 0 && through >= above.need && through - count < above.need) {
    uint32_t need = above.need - (through - count);
    int bin = top;
    while (__ldcg(bins + bin) < need) need -= __ldcg(bins + bin--);
    s_result = {(kLevel == 0 ? 0u : above.prefix << 10) | static_cast<uint32_t>(bin), need};
  }
  __syncthreads();
  return s_result;
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

/// Writes the winners among tokens [block * kOrderTokens, + kOrderTokens) behind those of `before`,
/// in order; the window is always in. load(first, keys): of tokens `first`, `first` + 32, ...
/// Returns what the block holds itself.
template <typename Load>
__device__ OrderCount write_block(const SelectArgs& a, int set, int block, SetState found,
                                  uint32_t keep, OrderCount before, Load&& load) {
  __shared__ uint32_t s_above[kWarps], s_equal[kWarps];
  constexpr int kRounds = kOrderRounds;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  int32_t* out = a.out.of_set(set);
  // A warp owns 32 * kRounds tokens in a row.
  const int warp_begin = block * kOrderTokens + warp * 32 * kRounds;
  uint32_t keys[kRounds];
  load(warp_begin + lane, keys);
  uint32_t is_above[kRounds], is_equal[kRounds];
  uint32_t warp_above = 0, warp_equal = 0;
#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    const int token = warp_begin + i * 32 + lane;
    const bool valid = token < a.prefix_len;
    is_above[i] = __ballot_sync(~0u, valid && keys[i] > found.prefix);
    is_equal[i] = __ballot_sync(~0u, valid && keys[i] == found.prefix);
    warp_above += __popc(is_above[i]);
    warp_equal += __popc(is_equal[i]);
  }
  __syncthreads();
  if (lane == 0) {
    s_above[warp] = warp_above;
    s_equal[warp] = warp_equal;
  }
  __syncthreads();
  OrderCount total{0, 0};
  uint32_t first_above = before.above, first_equal = before.equal;
  for (int w = 0; w < kWarps; ++w) {
    if (w == warp) {
      first_above += total.above;
      first_equal += total.equal;
    }
    total.above += s_above[w];
    total.equal += s_equal[w];
  }
  const uint32_t lower_lanes = (1u << lane) - 1u;
#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    const int token = warp_begin + i * 32 + lane;
    const uint32_t above_before = first_above + __popc(is_above[i] & lower_lanes);
    const uint32_t equal_before = first_equal + __popc(is_equal[i] & lower_lanes);
    const bool wins = (is_above[i] >> lane & 1u) != 0 ||
                      ((is_equal[i] >> lane & 1u) != 0 && equal_before < found.need);
    if (wins) out[above_before + min(equal_before, found.need)] = token;
    if (token >= a.prefix_len && token < a.k_len) {
      out[keep + static_cast<uint32_t>(token - a.prefix_len)] = token;
    }
    first_above += __popc(is_above[i]);
    first_equal += __popc(is_equal[i]);
  }
  return total;
}

/// The number of tokens of each set, once it is decided.
__device__ __forceinline__ void write_kept(const SelectArgs& a) {
  *a.out.kept = a.vote->keep_all != 0
                    ? a.k_len
                    : static_cast<int32_t>(a.vote->keep_count) + a.k_len - a.prefix_len;
}

}  // namespace
}  // namespace tsp::cuda
