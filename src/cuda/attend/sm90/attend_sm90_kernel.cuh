// SPDX-License-Identifier: MIT
// Causal attention on Hopper: one warpgroup brings Q, K and V, the others multiply 64 query rows
// each; docs/kernels/attend_sm90.md has the schedule.
#pragma once

#include "cuda/attend/sm90/attend_sm90_consumer.cuh"
#include "cuda/attend/sm90/attend_sm90_launch.h"
#include "cuda/attend/sm90/attend_sm90_producer.cuh"
#include "cuda/sm90/row_map.h"

namespace tsp::cuda {

/// Grid: one block a multiprocessor; blocks draw their tiles from a counter.
template <typename Type, int kHeadDim, int kConsumers>
__global__ void __launch_bounds__(Sm90Shape{kConsumers}.threads(), 1)
    attend_sm90_kernel(const __grid_constant__ AttendSm90Args a) {
  using Tile = Sm90Tile<kHeadDim, kConsumers>;
  extern __shared__ __align__(1024) unsigned char raw[];
  auto& shared = *reinterpret_cast<typename Tile::SharedStorage*>(raw);
  allow_next();
  if (threadIdx.x == 0) Tile::init(shared);
  __syncthreads();
  wait_previous();
  if (threadIdx.x < 128) {
    give_registers<Tile::kShape.producer_registers()>();
    Sm90Producer<kHeadDim, kConsumers> producer(a, shared);
    if (threadIdx.x >= 32) {
      producer.gather_queries();
    } else if (threadIdx.x == 0) {
      producer.hand_out();
    }
  } else {
    take_registers<Tile::kShape.consumer_registers()>();
    Sm90Consumer<Type, kHeadDim, kConsumers> consumer(a, shared);
    consumer.run();
  }
}

template <typename Type, int kHeadDim, int kConsumers>
tsp_status_t launch_with(const AttendSm90Args& args, cudaStream_t stream) {
  return launch("attend_sm90", attend_sm90_kernel<Type, kHeadDim, kConsumers>,
                dim3(static_cast<unsigned>(args.p.num_sms)),
                dim3(static_cast<unsigned>(Sm90Shape{kConsumers}.threads())),
                sizeof(typename Sm90Tile<kHeadDim, kConsumers>::SharedStorage), stream, args);
}

template <typename Type, int kHeadDim>
tsp_status_t launch_attend_sm90_kernel(const AttendSm90Params& params, cudaStream_t stream) {
  AttendSm90Args args{params, {}, {}};
  const int32_t units = params.num_heads / params.heads_per_unit;
  TSP_RETURN_IF_ERROR(
      make_row_map("attend", &args.k_map, params.k, params.k_rows, units, kHeadDim, kSm90TileKv));
  TSP_RETURN_IF_ERROR(
      make_row_map("attend", &args.v_map, params.v, params.k_rows, units, kHeadDim, kSm90TileKv));
  constexpr int kWithLists = sm90_shape(kHeadDim, true).consumers;
  constexpr int kWithout = sm90_shape(kHeadDim, false).consumers;
  return params.blocks.blocks != nullptr ? launch_with<Type, kHeadDim, kWithLists>(args, stream)
                                         : launch_with<Type, kHeadDim, kWithout>(args, stream);
}

}  // namespace tsp::cuda
