// SPDX-License-Identifier: MIT
// Blocks of a cluster: their barrier, and reading each other's shared memory.
#pragma once

#include <cstdint>

#include "cuda/ptx.cuh"

namespace tsp::cuda {

/// barrier.cluster.arrive, with a fence of one thread for all: what the block wrote is there for
/// the others, and it is through with reading.
__device__ __forceinline__ void arrive_cluster() {
  __syncthreads();
  if (threadIdx.x == 0) asm volatile("fence.acq_rel.cluster;\n" ::: "memory");
  asm volatile("barrier.cluster.arrive.relaxed;\n" ::: "memory");
}
/// barrier.cluster.wait, until every thread of the cluster has arrived.
__device__ __forceinline__ void await_cluster() {
  asm volatile("barrier.cluster.wait.acquire;\n" ::: "memory");
}
__device__ __forceinline__ void sync_cluster() {
  arrive_cluster();
  await_cluster();
}
/// mapa and ld.shared::cluster: neighbouring words of another block, at the place of `own`.
__device__ __forceinline__ void load_remote(const uint32_t* own, int rank, uint32_t (&words)[4]) {
  asm volatile(
      "{\n"
      ".reg .u32 at;\n"
      "mapa.shared::cluster.u32 at, %4, %5;\n"
      "ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [at];\n"
      "}\n"
      : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
      : "r"(shared_address(own)), "r"(rank)
      : "memory");
}
__device__ __forceinline__ void load_remote(const uint32_t* own, int rank, uint32_t (&words)[2]) {
  asm volatile(
      "{\n"
      ".reg .u32 at;\n"
      "mapa.shared::cluster.u32 at, %2, %3;\n"
      "ld.shared::cluster.v2.u32 {%0, %1}, [at];\n"
      "}\n"
      : "=r"(words[0]), "=r"(words[1])
      : "r"(shared_address(own)), "r"(rank)
      : "memory");
}

}  // namespace tsp::cuda
