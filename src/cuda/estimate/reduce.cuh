// SPDX-License-Identifier: MIT
// What a whole block agrees on: sums, maxima, and places in an order. Sums of floats run in one
// order: lanes of a warp by a tree, warps ascending.
#pragma once

#include <cstdint>

namespace tsp::cuda {

template <int kThreads>
struct Reduce {
  static constexpr int kWarps = kThreads / 32;
  union {
    float floats[kWarps];
    double doubles[kWarps];
    unsigned long long words[kWarps];
    int32_t counts[kWarps];
  };

  __device__ float sum(float x) {
    return all(floats, x, [](float a, float b) { return a + b; });
  }
  __device__ double sum(double x) {
    return all(doubles, x, [](double a, double b) { return a + b; });
  }
  __device__ float max(float x) {
    return all(floats, x, [](float a, float b) { return fmaxf(a, b); });
  }
  __device__ unsigned long long sum(unsigned long long x) {
    return all(words, x, [](unsigned long long a, unsigned long long b) { return a + b; });
  }
  __device__ unsigned long long max(unsigned long long x) {
    return all(words, x, [](unsigned long long a, unsigned long long b) { return a > b ? a : b; });
  }
  /// How many threads before this one say yes; `total` of all.
  __device__ int32_t rank(bool yes, int32_t& total) {
    const uint32_t votes = __ballot_sync(~0u, yes);
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    __syncthreads();  // what was here before has been read
    if (lane == 0) counts[warp] = __popc(votes);
    __syncthreads();
    int32_t before = 0;
    total = 0;
    for (int w = 0; w < kWarps; ++w) {
      before += w < warp ? counts[w] : 0;
      total += counts[w];
    }
    return before + __popc(votes & ((1u << lane) - 1));
  }

 private:
  template <typename Value, typename Join>
  __device__ Value all(Value* warps, Value x, Join&& join) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x = join(x, __shfl_xor_sync(~0u, x, step));
    __syncthreads();  // what was here before has been read
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    Value joined = warps[0];
    for (int w = 1; w < kWarps; ++w) joined = join(joined, warps[w]);
    return joined;
  }
};

}  // namespace tsp::cuda
