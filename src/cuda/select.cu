// SPDX-License-Identifier: MIT
// select: see select.h for the scheme. Sums of mass are integers, so no order of blocks changes
// them; a warp, a block and then the whole list are compacted in order, so ties go to the lower
// position.
#include "cuda/select.h"

#include "cuda/launch.h"
#include "cuda/scratch.h"

namespace tsp::cuda {
namespace {

constexpr int kWarps = kSelectThreads / 32;

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

/// Score of a token in a set: the f32 sum of the set's heads, ascending. The 0 it starts from turns
/// a -0 into 0.
__device__ __forceinline__ uint32_t set_key(const SelectArgs& a, int set, int token) {
  float sum = 0.f;
  for (int h = 0; h < a.out.heads_per_set; ++h) {
    sum = __fadd_rn(sum, a.scores.at(token, set * a.out.heads_per_set + h));
  }
  return __float_as_uint(sum);
}
/// The same once the vote is in memory: one set for all heads is the vote.
__device__ __forceinline__ uint32_t known_key(const SelectArgs& a, int set, int token) {
  return a.num_sets == 1 ? a.vote_keys[token] : set_key(a, set, token);
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

struct VoteHistogram {
  unsigned long long mass[level_bins(0)];
  uint32_t count[level_bins(0)];
};

template <int kLevel>
__device__ void clear(VoteHistogram& s) {
  for (int bin = static_cast<int>(threadIdx.x); bin < level_bins(kLevel); bin += kSelectThreads) {
    s.mass[bin] = 0;
    s.count[bin] = 0;
  }
  __syncthreads();
}
__device__ void count_vote(VoteHistogram& s, int bin, unsigned long long mass) {
  atomicAdd(&s.count[bin], 1u);
  atomicAdd(&s.mass[bin], mass);
}
template <int kLevel>
__device__ void finish_vote(const SelectArgs& a, const VoteHistogram& s, unsigned num_blocks) {
  __syncthreads();
  add_to_global(s.count, a.vote_tokens + level_first_bin(kLevel), level_bins(kLevel));
  for (int bin = static_cast<int>(threadIdx.x); bin < level_bins(kLevel); bin += kSelectThreads) {
    if (s.mass[bin] != 0) atomicAdd(a.vote_mass + level_first_bin(kLevel) + bin, s.mass[bin]);
  }
  if (is_last_block(&a.vote->tickets[kLevel], num_blocks)) decide_vote<kLevel>(a);
}

__device__ __forceinline__ unsigned vote_blocks(const SelectArgs& a) {
  return static_cast<unsigned>((a.prefix_len + kVoteTokens - 1) / kVoteTokens);
}
__device__ __forceinline__ unsigned set_blocks(const SelectArgs& a) {
  return static_cast<unsigned>((a.prefix_len + kSetTokens - 1) / kSetTokens);
}

/// Level 0 of the vote and of every set. Grid: vote_blocks + S * set_blocks.
__global__ void __launch_bounds__(kSelectThreads)
    first_level_kernel(const __grid_constant__ SelectArgs a) {
  await_previous();
  __shared__ VoteHistogram s;
  clear<0>(s);
  const unsigned votes = vote_blocks(a);
  if (blockIdx.x < votes) {
    const int token = static_cast<int>(blockIdx.x * kVoteTokens + threadIdx.x);
    if (token < a.prefix_len) {
      float sum = 0.f;
      bool valid = true;
#pragma unroll 8
      for (int head = 0; head < a.num_heads; ++head) {
        const float score = a.scores.at(token, head);
        valid = valid && score >= 0.f && score <= 2.f;
        sum = __fadd_rn(sum, score);
      }
      if (!valid) atomicOr(&a.vote->invalid, 1u);
      const uint32_t key = valid ? __float_as_uint(sum) : 0u;
      a.vote_keys[token] = key;
      count_vote(s, static_cast<int>(key >> level_shift(0)), mass_of(a, key));
    }
    finish_vote<0>(a, s, votes);
    return;
  }
  const unsigned index = blockIdx.x - votes;
  const int set = static_cast<int>(index / set_blocks(a));
  const int begin = static_cast<int>(index % set_blocks(a)) * kSetTokens;
#pragma unroll
  for (int i = 0; i < kSetTokens / kSelectThreads; ++i) {
    const int token = begin + i * kSelectThreads + static_cast<int>(threadIdx.x);
    if (token < a.prefix_len) {
      // Invalid scores keep everything; the mask only stops them from leaving the histogram.
      atomicAdd(&s.count[(set_key(a, set, token) >> level_shift(0)) & 2047u], 1u);
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
  __shared__ VoteHistogram s;
  if (a.vote->keep_all != 0) return;
  clear<kLevel>(s);
  const uint32_t prefix = a.vote->prefix;
  const int token = static_cast<int>(blockIdx.x * kVoteTokens + threadIdx.x);
  if (token < a.prefix_len) {
    const uint32_t key = a.vote_keys[token];
    if (key >> level_shift(kLevel - 1) == prefix) {
      count_vote(s, static_cast<int>(key >> level_shift(kLevel) & 1023u), mass_of(a, key));
    }
  }
  finish_vote<kLevel>(a, s, vote_blocks(a));
}

/// The bin of level `kLevel` that holds the K-th largest key of a set, and what is needed from it.
/// Every block of the set finds it for itself; block 0 leaves it for the next kernel.
template <int kLevel>
__device__ SetState descend_set(const SelectArgs& a, int set) {
  __shared__ uint32_t s_warps[kWarps];
  __shared__ SetState s_result;
  constexpr int kPerThread = level_bins(kLevel) / kSelectThreads;
  SetState above{0u, a.vote->keep_count};
  if (kLevel > 0) above = a.set_state[(kLevel - 1) * a.num_sets + set];
  if (threadIdx.x == 0) s_result = {~0u, 0u};  // nothing needed: no key is that large
  const uint32_t* bins = a.set_tokens + int64_t{set} * kSelectBins + level_first_bin(kLevel);
  // Thread 0 has the highest bins.
  const int top = level_bins(kLevel) - 1 - static_cast<int>(threadIdx.x) * kPerThread;
  uint32_t count = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) count += bins[top - i];
  uint32_t total;
  const uint32_t through = block_scan(count, s_warps, total);
  if (above.need > 0 && through >= above.need && through - count < above.need) {
    uint32_t need = above.need - (through - count);
    int bin = top;
    while (bins[bin] < need) need -= bins[bin--];
    s_result = {(kLevel == 0 ? 0u : above.prefix << 10) | static_cast<uint32_t>(bin), need};
  }
  __syncthreads();
  const SetState result = s_result;
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
  const SetState found = descend_set<kLevel - 1>(a, set);  // synchronises
  const int begin = static_cast<int>(blockIdx.x) * kSetTokens;
#pragma unroll
  for (int i = 0; i < kSetTokens / kSelectThreads; ++i) {
    const int token = begin + i * kSelectThreads + static_cast<int>(threadIdx.x);
    if (token >= a.prefix_len) continue;
    const uint32_t key = known_key(a, set, token);
    if (key >> level_shift(kLevel - 1) == found.prefix) {
      atomicAdd(&s_count[key >> level_shift(kLevel) & 1023u], 1u);
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
  __shared__ uint32_t s_above[kWarps], s_equal[kWarps];
  if (a.vote->keep_all != 0) return;
  const int set = static_cast<int>(blockIdx.y);
  const uint32_t threshold = descend_set<kSelectLevels - 1>(a, set).prefix;
  uint32_t above = 0, equal = 0;
#pragma unroll
  for (int i = 0; i < kOrderTokens / kSelectThreads; ++i) {
    const int token = static_cast<int>(blockIdx.x) * kOrderTokens + i * kSelectThreads +
                      static_cast<int>(threadIdx.x);
    if (token >= a.prefix_len) continue;
    const uint32_t key = known_key(a, set, token);
    above += key > threshold ? 1u : 0u;
    equal += key == threshold ? 1u : 0u;
  }
  uint32_t total_above, total_equal;
  block_scan(above, s_above, total_above);
  block_scan(equal, s_equal, total_equal);
  if (threadIdx.x == 0) {
    a.order[set * a.order_blocks + static_cast<int>(blockIdx.x)] = {total_above, total_equal};
  }
}

/// Writes indices in ascending order. Grid (ceil(Tk / 2048), S).
__global__ void __launch_bounds__(kSelectThreads)
    order_write_kernel(const __grid_constant__ SelectArgs a) {
  await_previous();
  __shared__ uint32_t s_above[kWarps], s_equal[kWarps];
  constexpr int kRounds = kOrderTokens / kSelectThreads;
  const int set = static_cast<int>(blockIdx.y);
  const int block = static_cast<int>(blockIdx.x);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  int32_t* out = a.out.of_set(set);
  const bool keep_all = a.vote->keep_all != 0;
  const uint32_t keep = a.vote->keep_count;
  if (block == 0 && set == 0 && threadIdx.x == 0) {
    *a.out.kept = keep_all ? a.k_len : static_cast<int32_t>(keep) + a.k_len - a.prefix_len;
  }
  const int warp_begin = block * kOrderTokens + warp * 32 * kRounds;
  if (keep_all) {
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      const int token = warp_begin + i * 32 + lane;
      if (token < a.k_len) out[token] = token;
    }
    return;
  }
  const SetState found = a.set_state[(kSelectLevels - 1) * a.num_sets + set];
  // What the stretches before this one hold.
  uint32_t above = 0, equal = 0;
  const int before = min(block, a.order_blocks);
  for (int i = static_cast<int>(threadIdx.x); i < before; i += kSelectThreads) {
    const OrderCount count = a.order[set * a.order_blocks + i];
    above += count.above;
    equal += count.equal;
  }
  uint32_t first_above, first_equal;
  block_scan(above, s_above, first_above);
  block_scan(equal, s_equal, first_equal);

  // A warp owns 32 * kRounds tokens in a row.
  uint32_t is_above[kRounds], is_equal[kRounds];
  uint32_t warp_above = 0, warp_equal = 0;
#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    const int token = warp_begin + i * 32 + lane;
    const bool valid = token < a.prefix_len;
    const uint32_t key = valid ? known_key(a, set, token) : 0u;
    is_above[i] = __ballot_sync(~0u, valid && key > found.prefix);
    is_equal[i] = __ballot_sync(~0u, valid && key == found.prefix);
    warp_above += __popc(is_above[i]);
    warp_equal += __popc(is_equal[i]);
  }
  __syncthreads();
  if (lane == 0) {
    s_above[warp] = warp_above;
    s_equal[warp] = warp_equal;
  }
  __syncthreads();
  for (int w = 0; w < warp; ++w) {
    first_above += s_above[w];
    first_equal += s_equal[w];
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
    if (token >= a.prefix_len && token < a.k_len) {  // the window is always in
      out[keep + static_cast<uint32_t>(token - a.prefix_len)] = token;
    }
    first_above += __popc(is_above[i]);
    first_equal += __popc(is_equal[i]);
  }
}

struct KeepAllArgs {
  Sets out;
  int32_t k_len;
};
/// Grid (ceil(Tk / 512), S).
__global__ void __launch_bounds__(kSelectThreads)
    keep_all_kernel(const __grid_constant__ KeepAllArgs a) {
  await_previous();
  const int token = static_cast<int>(blockIdx.x * kSelectThreads + threadIdx.x);
  if (token == 0 && blockIdx.y == 0 && a.out.kept != nullptr) *a.out.kept = a.k_len;
  if (token < a.k_len && a.out.indices != nullptr) {
    a.out.of_set(static_cast<int>(blockIdx.y))[token] = token;
  }
}

unsigned blocks(int64_t count, int64_t per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

/// Returns the bytes that must be zero at the start.
size_t place(SelectArgs& args, Scratch& scratch) {
  args.vote = scratch.take<VoteState>(1);
  args.vote_tokens = scratch.take<uint32_t>(kSelectBins);
  args.vote_mass = scratch.take<unsigned long long>(kSelectBins);
  args.set_tokens = scratch.take<uint32_t>(int64_t{args.num_sets} * kSelectBins);
  const size_t zeroed = scratch.used();
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
  TSP_RETURN_IF_ERROR(check(cudaMemsetAsync(a.vote, 0, zeroed, stream), "select: memset"));
  const dim3 threads(kSelectThreads);
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

tsp_status_t launch_keep_all(const Sets& out, int32_t num_sets, int32_t k_len,
                             cudaStream_t stream) {
  const dim3 grid(blocks(k_len, kSelectThreads), static_cast<unsigned>(num_sets));
  return launch("select: keep all", keep_all_kernel, grid, dim3(kSelectThreads), 0, stream,
                KeepAllArgs{out, k_len});
}

}  // namespace tsp::cuda
