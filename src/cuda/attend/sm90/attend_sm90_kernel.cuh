// SPDX-License-Identifier: MIT
// Causal attention on Hopper: one warpgroup brings Q, K and V, two multiply 64 query rows each;
// docs/kernels/attend_sm90.md has the schedule.
#pragma once

#include "cuda/attend/sm90/attend_sm90_consumer.cuh"
#include "cuda/attend/sm90/attend_sm90_launch.h"
#include "cuda/attend/sm90/attend_sm90_producer.cuh"

namespace tsp::cuda {

/// Grid: one block a multiprocessor; blocks draw their tiles from a counter.
template <typename Type, int kHeadDim>
__global__ void __launch_bounds__(kSm90Threads, 1)
    attend_sm90_kernel(const __grid_constant__ AttendSm90Args a) {
  extern __shared__ __align__(1024) unsigned char raw[];
  auto& shared = *reinterpret_cast<typename Sm90Tile<kHeadDim>::SharedStorage*>(raw);
  allow_next();
  if (threadIdx.x == 0) Sm90Tile<kHeadDim>::init(shared);
  __syncthreads();
  wait_previous();
  if (threadIdx.x < 128) {
    give_registers<kSm90ProducerRegisters>();
    Sm90Producer<kHeadDim> producer(a, shared);
    if (threadIdx.x >= 32) {
      producer.gather_queries();
    } else if (threadIdx.x == 0) {
      producer.hand_out();
    }
  } else {
    take_registers<kSm90ConsumerRegisters>();
    Sm90Consumer<Type, kHeadDim> consumer(a, shared);
    consumer.run();
  }
}

template <typename Type, int kHeadDim>
tsp_status_t launch_attend_sm90_kernel(const AttendSm90Params& params, cudaStream_t stream) {
  AttendSm90Args args{params, {}, {}};
  TSP_RETURN_IF_ERROR(make_kv_map(&args.k_map, params, params.k));
  TSP_RETURN_IF_ERROR(make_kv_map(&args.v_map, params, params.v));
  return launch("attend_sm90", attend_sm90_kernel<Type, kHeadDim>,
                dim3(static_cast<unsigned>(params.num_sms)), dim3(kSm90Threads),
                sizeof(typename Sm90Tile<kHeadDim>::SharedStorage), stream, args);
}

}  // namespace tsp::cuda
