// SPDX-License-Identifier: MIT
// What the warpgroups of an attention block share: tiles, barriers, tasks.
#pragma once

#include <cuda.h>

#include "cuda/attend/sm90/attend_sm90.h"
#include "cuda/attend/sm90/attend_sm90_config.h"
#include "cuda/launch.h"
#include "cuda/ptx.cuh"
#include "cuda/sets.cuh"
#include "cuda/sm90/mbarrier.cuh"
#include "cuda/sm90/tma.cuh"

namespace tsp::cuda {

struct AttendSm90Args {
  AttendSm90Params p;
  CUtensorMap k_map;  // [unit, column block, row, 64]
  CUtensorMap v_map;
};

/// A query tile; head < 0: there is no more.
struct Sm90Task {
  int32_t head;
  int32_t first;       // list entry of row 0
  int32_t num_steps;   // K tiles to look at, latest first
  int32_t num_masked;  // of them the first ones, where a row may not see a key
};

/// A place in a ring of barriers, and the parity of its phase.
template <int kPlaces>
struct RingPlace {
  int index = 0;
  int parity = 0;
  __device__ __forceinline__ void advance() {
    if (++index == kPlaces) {
      index = 0;
      parity ^= 1;
    }
  }
};

template <int kHeadDim, int kConsumers>
struct Sm90Tile {
  static constexpr Sm90Shape kShape{kConsumers};
  static constexpr int kTileQ = kShape.tile_q();
  static constexpr int kChunks = kHeadDim / 8;   // 16-byte chunks of a row
  static constexpr int kBlocks = kHeadDim / 64;  // column blocks of 128 bytes
  static constexpr int kQBlockBytes = kTileQ * 128;
  static constexpr int kKvBlockBytes = kSm90TileKv * 128;
  static constexpr int kKvBytes = kKvBlockBytes * kBlocks;
  static constexpr int kConsumerArrivals = 4 * kConsumers * kWarpArrivals;

  /// Tiles are [column block, row, 64] in the swizzle of sm90/wgmma.cuh.
  struct SharedStorage {
    uint4 q[kTileQ * kChunks];
    uint4 k[kSm90Stages][kSm90TileKv * kChunks];
    uint4 v[kSm90Stages][kSm90TileKv * kChunks];
    uint64_t q_full, q_empty;
    uint64_t k_full[kSm90Stages], k_empty[kSm90Stages];
    uint64_t v_full[kSm90Stages], v_empty[kSm90Stages];
    uint64_t task_full[kSm90Tasks], task_empty[kSm90Tasks];
    Sm90Task task[kSm90Tasks];
    Sm90Order order;
    int32_t n;                       // entries of the lists
    int32_t key_block[kSm90Stages];  // which one a K tile is
  };
  static_assert(sizeof(SharedStorage) <= sm90_shared_limit_bytes);

  /// By one thread.
  static __device__ __forceinline__ void init(SharedStorage& s) {
    init_barrier(&s.q_full, kSm90QueryWarps * 32);
    init_barrier(&s.q_empty, kConsumerArrivals);
    for (int i = 0; i < kSm90Stages; ++i) {
      init_barrier(&s.k_full[i], 1);
      init_barrier(&s.v_full[i], 1);
      init_barrier(&s.k_empty[i], kConsumerArrivals);
      init_barrier(&s.v_empty[i], kConsumerArrivals);
    }
    for (int i = 0; i < kSm90Tasks; ++i) {
      init_barrier(&s.task_full[i], 1);
      init_barrier(&s.task_empty[i], kConsumerArrivals + kSm90QueryWarps * kWarpArrivals);
    }
    fence_barrier_init();
  }
};

/// First list entry of a set that is a query.
__device__ __forceinline__ int32_t first_query(const AttendSm90Params& p, int32_t set) {
  return p.q_first == nullptr ? p.k_len - p.q_len : p.q_first[set];
}

}  // namespace tsp::cuda
