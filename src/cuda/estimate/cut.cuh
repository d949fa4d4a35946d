// SPDX-License-Identifier: MIT
// The strongest of n values in fixed point, as core/block_choice.cc ranks them, without a sort: the
// value of the last that belongs is found digit by digit from histograms, its equals by index.
#pragma once

#include "cuda/estimate/estimate.h"
#include "cuda/estimate/reduce.cuh"

namespace tsp::cuda {

using Units = unsigned long long;
constexpr Units kAlwaysFirst = ~0ull;  // before every mass

/// 2^e of n masses.
__device__ __forceinline__ float unit_of_mass(int64_t n) {
  const int bits = n <= 1 ? 0 : 64 - __clzll(n - 1);
  return __uint_as_float(static_cast<uint32_t>(61 - bits + 127) << 23);
}
__device__ __forceinline__ Units to_units(float mass, float unit) {
  return static_cast<Units>(mass * unit);
}
__device__ __forceinline__ bool rankable(float mass) { return mass >= 0.f && mass <= 2.f; }
__device__ __forceinline__ Units ceil_share(float share, Units total) {
  return static_cast<Units>(ceil(static_cast<double>(share) * static_cast<double>(total)));
}
__device__ __forceinline__ Units floor_share(float share, Units total) {
  return static_cast<Units>(floor(static_cast<double>(share) * static_cast<double>(total)));
}

/// By a whole block; all threads get the same answers.
template <int kThreads>
struct Ranking {
  static constexpr int kBins = 256;
  Reduce<kThreads> reduce;
  Units bins[kBins];
  uint32_t numbers[kBins];
  Units rest;
  Units prefix;
  Units above;
  uint32_t equals;

  struct Found {
    Units value;     // of the last that belongs
    int64_t above;   // values greater than it
    int64_t equals;  // as great
    int64_t need;    // of those that belong
  };

  /// The fewest of the strongest whose weight reaches `limit` (1 .. the weight of all). `value_of`
  /// gives an index's value; a mass weighs itself, else each weighs 1.
  template <typename ValueOf>
  __device__ __forceinline__ Found reach(int64_t n, Units limit, bool by_mass, ValueOf&& value_of) {
    __syncthreads();
    if (threadIdx.x == 0) {
      rest = limit;
      prefix = 0;
      above = 0;
    }
    for (int shift = 56; shift >= 0; shift -= 8) {
      for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kThreads) {
        bins[i] = 0;
        numbers[i] = 0;
      }
      __syncthreads();
      const Units leading = prefix;
      for (int64_t begin = 0; begin < n; begin += kBatch * kThreads) {
        Units values[kBatch];
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          const int64_t i = begin + j * kThreads + threadIdx.x;
          values[j] = i < n ? value_of(i) : 0;
        }
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          const bool there = begin + j * kThreads + threadIdx.x < n &&
                             (shift == 56 || values[j] >> (shift + 8) == leading);
          add(there ? static_cast<int>(values[j] >> shift & 255) : -1, values[j], by_mass);
        }
      }
      __syncthreads();
      if (threadIdx.x < 32) descend(by_mass);
      __syncthreads();
    }
    Found found{prefix, static_cast<int64_t>(above), static_cast<int64_t>(equals), 0};
    found.need = static_cast<int64_t>(by_mass ? (rest + prefix - 1) / prefix : rest);
    return found;
  }

  /// The first `need` of those equal to found.value, as a cut.
  template <typename ValueOf>
  __device__ __forceinline__ Cut cut_at(int64_t n, const Found& found, int64_t need,
                                        ValueOf&& value_of) {
    if (need >= found.equals) return {found.value, n};
    int64_t seen = 0;
    for (int64_t begin = 0; begin < n; begin += kThreads) {
      const int64_t i = begin + threadIdx.x;
      int32_t here = 0;
      const bool equal = i < n && value_of(i) == found.value;
      const int64_t rank = seen + reduce.rank(equal, here);
      // The equal after the last that belongs ends them.
      const Units end = reduce.max(equal && rank == need ? static_cast<Units>(i) + 1 : 0ull);
      if (end != 0) return {found.value, static_cast<int64_t>(end) - 1};
      seen += here;
    }
    return {found.value, n};
  }

 private:
  static constexpr int kBatch = 4;  // loads in flight

  /// A value per lane, bin < 0: none. Masses lie close together, so whole warps often meet in one
  /// bin, where 64-bit additions in shared memory would wait for each other.
  __device__ __forceinline__ void add(int bin, Units value, bool by_mass) {
    int same = 0;
    __match_all_sync(~0u, bin, &same);
    if (same == 0) {
      if (bin < 0) return;
      atomicAdd(&numbers[bin], 1u);
      if (by_mass) atomicAdd(&bins[bin], value);
      return;
    }
    if (bin < 0) return;
    if (by_mass) {
#pragma unroll
      for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
    }
    if (threadIdx.x % 32 != 0) return;
    atomicAdd(&numbers[bin], 32u);
    if (by_mass) atomicAdd(&bins[bin], value);
  }

  /// One warp: the bin in which the weight of the strongest reaches the rest. Lane i has the bins
  /// 255 - 8 i downwards.
  __device__ void descend(bool by_mass) {
    constexpr int kEach = kBins / 32;
    const int lane = static_cast<int>(threadIdx.x);
    const int first = kBins - 1 - lane * kEach;
    Units sum = 0, before;
    uint32_t number = 0;
    const auto weight = [&](int bin) { return by_mass ? bins[bin] : Units{numbers[bin]}; };
    for (int i = 0; i < kEach; ++i) {
      sum += weight(first - i);
      number += numbers[first - i];
    }
    const Units wanted = rest;
    __syncwarp();  // before one lane writes the rest
    Units upto = sum;
    uint32_t numbers_upto = number;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const Units other = __shfl_up_sync(~0u, upto, step);
      const uint32_t other_number = __shfl_up_sync(~0u, numbers_upto, step);
      if (lane >= step) {
        upto += other;
        numbers_upto += other_number;
      }
    }
    const uint32_t reached = __ballot_sync(~0u, upto >= wanted);
    if (lane != (reached == 0 ? 31 : __ffs(static_cast<int>(reached)) - 1)) return;
    before = upto - sum;
    uint32_t numbers_before = numbers_upto - number;
    int bin = first;
    for (int i = 0; i < kEach - 1 && before + weight(bin) < wanted; ++i, --bin) {
      before += weight(bin);
      numbers_before += numbers[bin];
    }
    rest = wanted - before;
    above += numbers_before;
    equals = numbers[bin];
    prefix = prefix << 8 | static_cast<Units>(bin);
  }
};

__device__ __forceinline__ bool belongs(const Cut& cut, Units value, int64_t index) {
  return value > cut.value || (value == cut.value && index < cut.end);
}

}  // namespace tsp::cuda
