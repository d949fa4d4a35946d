// SPDX-License-Identifier: MIT
// Barriers of a part of the block: mbarrier in shared memory, and named barriers.
#pragma once

#include <cstdint>

#include "cuda/ptx.cuh"

namespace tsp::cuda {

/// mbarrier.init: a phase ends when `count` threads have arrived.
__device__ __forceinline__ void init_barrier(uint64_t* barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(barrier)),
               "r"(count)
               : "memory");
}
/// mbarrier.arrive
__device__ __forceinline__ void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(barrier))
               : "memory");
}
/// How many arrivals arrive_warp() counts for.
#ifdef TSP_CUDA_RACECHECK
constexpr int kWarpArrivals = 32;
#else
constexpr int kWarpArrivals = 1;
#endif
/// This warp's arrival, once all its lanes are here. One lane speaks for them, since arrivals are
/// atomics on one word; but racecheck does not follow the other lanes' reads through __syncwarp to
/// that lane's arrival (tests/cuda_racecheck_probe.cu shows it), so in a build for it all arrive.
__device__ __forceinline__ void arrive_warp(uint64_t* barrier) {
  __syncwarp();
  if (kWarpArrivals > 1 || threadIdx.x % 32 == 0) arrive(barrier);
}
/// mbarrier.try_wait.parity, until the phase of that parity has ended.
__device__ __forceinline__ void wait_for(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "retry_%=:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra retry_%=;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

/// bar.sync of barrier `id` (1 .. 15; 0 is __syncthreads) among `count` threads.
__device__ __forceinline__ void sync_named(int id, int count) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(count) : "memory");
}
/// bar.arrive: counts as one of `count` without waiting.
__device__ __forceinline__ void arrive_named(int id, int count) {
  asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(count) : "memory");
}

}  // namespace tsp::cuda
