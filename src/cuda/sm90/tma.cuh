// SPDX-License-Identifier: MIT
// One wrapper per instruction of the bulk tensor copy engine, of its barriers, and of the register
// exchange between warpgroups.
#pragma once

#include <cuda.h>

#include "cuda/ptx.cuh"

namespace tsp::cuda {

/// mbarrier.arrive.expect_tx: one arrival, and the phase also waits for `bytes` from copies.
__device__ __forceinline__ void arrive_expecting(uint64_t* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}
/// fence.mbarrier_init: the copy engine sees barriers that this thread set up.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}
/// prefetch.tensormap
__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];\n" ::"l"(map) : "memory");
}

struct TileAt {
  int32_t row;    // of the tensor
  int32_t block;  // column block of 64 elements
  int32_t head;
};

/// cp.async.bulk.tensor.4d: a box of the map to shared memory, its bytes counted by `barrier`.
__device__ __forceinline__ void copy_tile(void* shared, const CUtensorMap* map, TileAt at,
                                          uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4, %5}], [%6];\n" ::"r"(shared_address(shared)),
      "l"(map), "r"(0), "r"(at.row), "r"(at.block), "r"(at.head), "r"(shared_address(barrier))
      : "memory");
}

/// setmaxnreg.dec and .inc, by every warp of a warpgroup.
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

}  // namespace tsp::cuda
