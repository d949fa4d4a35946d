// SPDX-License-Identifier: MIT
// The strongest of n masses in fixed point, as core/block_choice.cc ranks them, without a sort: the
// mass of the last that belongs is found bit by bit, its equals by their index. The bits are those
// of the f32 mass, which orders as they do: half as many as its fixed point has.
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

/// Of a mass that is in before all others.
constexpr float kFirstMass = INFINITY;
__device__ __forceinline__ Units rank_of(float mass, float unit) {
  return mass == kFirstMass ? kAlwaysFirst : to_units(mass, unit);
}
/// In thirds, of which 32 fit into the 32 bits that one instruction adds up over a warp.
__device__ __forceinline__ Units sum_of_warp(Units x) {
  constexpr uint32_t kPart = (1u << 27) - 1;
  const uint32_t low = static_cast<uint32_t>(x) & kPart;
  const uint32_t middle = static_cast<uint32_t>(x >> 27) & kPart;
  const uint32_t high = static_cast<uint32_t>(x >> 54);
  return __reduce_add_sync(~0u, low) + (Units{__reduce_add_sync(~0u, middle)} << 27) +
         (Units{__reduce_add_sync(~0u, high)} << 54);
}

/// By a whole block; all threads get the same answers.
template <int kThreads>
struct Ranking {
  static constexpr int kWarps = kThreads / 32;
  Reduce<kThreads> reduce;
  Units warp_sums[3][kWarps];

  struct Found {
    Units value;     // of the last that belongs
    int64_t above;   // values greater than it
    int64_t equals;  // as great
    int64_t need;    // of those that belong
  };

  /// The fewest of the strongest whose weight reaches `limit` (1 .. the weight of all). `mass_of`
  /// gives an index's mass; kByMass: it weighs itself, else each weighs 1.
  template <bool kByMass, typename MassOf>
  __device__ __forceinline__ Found reach(int64_t n, Units limit, float unit, MassOf&& mass_of) {
    using Weight = std::conditional_t<kByMass, Units, uint32_t>;
    // The largest f32 from which on the weight suffices, two bits at a time.
    uint32_t least = 0;
    for (int shift = 30; shift >= 0; shift -= 2) {
      Weight own[3] = {};
#pragma unroll 4
      for (int64_t i = threadIdx.x; i < n; i += kThreads) {
        const float mass = mass_of(i);
        const Weight weight = kByMass ? static_cast<Weight>(to_units(mass, unit)) : 1;
#pragma unroll
        for (uint32_t c = 0; c < 3; ++c) {
          if (__float_as_uint(mass) >= (least | (c + 1) << shift)) own[c] += weight;
        }
      }
      Units sums[3] = {own[0], own[1], own[2]};
      sum_all(sums);
      const uint32_t digit = sums[2] >= limit ? 3 : sums[1] >= limit ? 2 : sums[0] >= limit ? 1 : 0;
      least |= digit << shift;
    }
    Found found{rank_of(__uint_as_float(least), unit), 0, 0, 0};
    Units counts[3] = {};  // greater, as great, weight of the greater
    for (int64_t i = threadIdx.x; i < n; i += kThreads) {
      const Units value = rank_of(mass_of(i), unit);
      counts[0] += value > found.value ? 1 : 0;
      counts[1] += value == found.value ? 1 : 0;
      counts[2] += value > found.value ? (kByMass ? value : 1) : 0;
    }
    sum_all(counts);
    found.above = static_cast<int64_t>(counts[0]);
    found.equals = static_cast<int64_t>(counts[1]);
    const Units left = limit - counts[2];
    found.need = static_cast<int64_t>(kByMass ? (left + found.value - 1) / found.value : left);
    return found;
  }

  /// The first `need` of those equal to found.value, as a cut.
  template <typename MassOf>
  __device__ __forceinline__ Cut cut_at(int64_t n, const Found& found, int64_t need, float unit,
                                        MassOf&& mass_of) {
    if (need >= found.equals) return {found.value, n};
    int64_t seen = 0;
    for (int64_t begin = 0; begin < n; begin += kThreads) {
      const int64_t i = begin + threadIdx.x;
      int32_t here = 0;
      const bool equal = i < n && rank_of(mass_of(i), unit) == found.value;
      const int64_t rank = seen + reduce.rank(equal, here);
      // The equal after the last that belongs ends them.
      const Units end = reduce.max(equal && rank == need ? static_cast<Units>(i) + 1 : 0ull);
      if (end != 0) return {found.value, static_cast<int64_t>(end) - 1};
      seen += here;
    }
    return {found.value, n};
  }

 private:
  static_assert(kWarps <= 32);
  /// Of all threads.
  __device__ __forceinline__ void sum_all(Units (&sums)[3]) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    __syncthreads();  // what was here before has been read
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const Units sum = sum_of_warp(sums[c]);
      if (lane == 0) warp_sums[c][warp] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int c = 0; c < 3; ++c) sums[c] = sum_of_warp(lane < kWarps ? warp_sums[c][lane] : 0);
  }
};

__device__ __forceinline__ bool belongs(const Cut& cut, Units value, int64_t index) {
  return value > cut.value || (value == cut.value && index < cut.end);
}

}  // namespace tsp::cuda
