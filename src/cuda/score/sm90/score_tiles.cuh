// SPDX-License-Identifier: MIT
// Memory and products of the warpgroup score kernels. The queries of up to four heads stay in
// shared memory, one warpgroup brings K tiles of 128 keys through the stages (the copy engine does,
// but from a paged pool), and each of four others multiplies with the queries of its head. A
// product takes the tensor cores as long as its exponentials take the special function units: while
// a warpgroup or two do the first, the others do the second.
#pragma once

#include <cooperative_groups.h>

#include "cuda/launch.h"
#include "cuda/score/score.h"
#include "cuda/sm90/mbarrier.cuh"
#include "cuda/sm90/tma.cuh"
#include "cuda/sm90/wgmma.cuh"

namespace tsp::cuda {

struct WideScoreArgs {
  ScoreArgs score;
  CUtensorMap q_map;  // of the window alone
  CUtensorMap k_map;  // not where K is paged
};

template <typename Type, int kHeadDim>
struct WideTile {
  static constexpr int kRows = kWideKeys;        // of a K tile, and of a head's queries
  static constexpr int kChunks = kHeadDim / 8;   // 16-byte chunks of a row
  static constexpr int kHalves = kHeadDim / 64;  // 128-byte column blocks of a row
  static constexpr int kTileChunks = kRows * kChunks;
  static constexpr int kTileBytes = kTileChunks * 16;
  static constexpr int kHalfBytes = kRows * 128;

  struct SharedStorage {
    uint4 q[kWideHeads][kTileChunks];
    uint4 k[kWideStages][kTileChunks];
    float shift[kWideHeads][kRows];  // pass 2: weight = 2^(s - shift)
    uint64_t queries;                // they have arrived
    uint64_t full[kWideStages];      // the tile has
    uint64_t empty[kWideStages];     // every head has been multiplied with it
  };

  /// Where chunk `chunk` of row `row` lies in a tile (see sm90/wgmma.cuh).
  static __device__ __forceinline__ int place(int row, int chunk) {
    return (chunk / 8 * kRows + row) * 8 + ((chunk ^ row) & 7);
  }

  /// One product: rows of `a` (64 of them from its start) times the 128 rows of `b`, in two groups.
  static __device__ __forceinline__ void start(float (&d)[64], uint32_t a, uint32_t b) {
    wgmma_fence();
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      const uint64_t a_tile = tile_descriptor(a + half * kHalfBytes);
      const uint64_t b_tile = tile_descriptor(b + half * kHalfBytes);
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        wgmma<Type>(d, a_tile + step * 2, b_tile + step * 2, half + step > 0);
        if (half * 4 + step == kHalves * 2 - 1) wgmma_commit();
      }
    }
    wgmma_commit();
  }
};

/// Head of the group that a block's head `h` is, or negative.
__device__ __forceinline__ int head_of(const ScoreArgs& a, int h) {
  const int in_group = static_cast<int>(blockIdx.y) * a.plan.heads_per_block + h;
  if (h >= a.plan.heads_per_block || in_group >= a.group) return -1;
  return static_cast<int>(blockIdx.z) * a.group + in_group;
}

/// Heads of this block.
__device__ __forceinline__ int num_heads(const ScoreArgs& a) {
  return min(a.plan.heads_per_block,
             a.group - static_cast<int>(blockIdx.y) * a.plan.heads_per_block);
}

/// Starts the copies of the block's queries, by one thread; rows beyond the window become zeros.
template <typename Type, int kHeadDim>
__device__ __forceinline__ void fetch_queries(
    const WideScoreArgs& args, typename WideTile<Type, kHeadDim>::SharedStorage& shared) {
  using Tile = WideTile<Type, kHeadDim>;
  const int heads = num_heads(args.score);
  arrive_expecting(&shared.queries, heads * Tile::kTileBytes);
  for (int h = 0; h < heads; ++h) {
#pragma unroll
    for (int c = 0; c < Tile::kHalves; ++c) {
      copy_tile(shared.q[h] + c * (Tile::kHalfBytes / 16), &args.q_map,
                {0, c, head_of(args.score, h)}, &shared.queries);
    }
  }
}

/// K tiles of a block: those of pass 1, then those of pass 2, the last first: they are the nearest.
struct ScoreWalk {
  int begin[2], end[2];

  __device__ __forceinline__ ScoreWalk(const ScoreArgs& a, int chunk) {
    cut(a.k_len, a.plan.stat_chunks, chunk, begin[0], end[0]);
    cut(a.prefix_len, a.plan.mass_chunks, chunk, begin[1], end[1]);
  }
  static __device__ __forceinline__ void cut(int keys, int chunks, int chunk, int& first,
                                             int& last) {
    const int tiles = (keys + kWideKeys - 1) / kWideKeys;
    first = chunk < chunks ? static_cast<int>(int64_t{tiles} * chunk / chunks) : 0;
    last = chunk < chunks ? static_cast<int>(int64_t{tiles} * (chunk + 1) / chunks) : 0;
  }
  __device__ __forceinline__ int first_steps() const { return end[0] - begin[0]; }
  __device__ __forceinline__ int steps() const { return first_steps() + end[1] - begin[1]; }
  __device__ __forceinline__ int tile(int step) const {
    return step < first_steps() ? begin[0] + step : end[1] - 1 - (step - first_steps());
  }
};

/// Where step `step` lies in the ring, and how often its stage has been filled before.
__device__ __forceinline__ int stage_of(int step) { return step % kWideStages; }
__device__ __forceinline__ int turn_of(int step) { return step / kWideStages; }

/// The K tile of a step from a paged pool, by the 128 threads of the producer. Keys that are not
/// there become zeros.
template <typename Type, int kHeadDim>
__device__ __forceinline__ void gather_keys(const ScoreArgs& a, uint4* stage, int step,
                                            const ScoreWalk& walk) {
  using Tile = WideTile<Type, kHeadDim>;
  constexpr int kStep = 128 / Tile::kChunks;  // rows of a round, a multiple of 8
  if (step < walk.steps()) {
    const int tile = walk.tile(step);
    const int thread = static_cast<int>(threadIdx.x) % 128;
    const int chunk = thread % Tile::kChunks;
    const int first = thread / Tile::kChunks;
    const int kv_head = static_cast<int>(blockIdx.z);
    uint4* to = stage + Tile::place(first, chunk);
#pragma unroll 4
    for (int row = first; row < Tile::kRows; row += kStep, to += kStep * 8) {
      const int key = tile * kWideKeys + row;
      const bool there = key < a.k_len;
      copy_async(to, there ? a.k.row(key, kv_head) + chunk * 8 : a.k.data, there);
    }
  }
  commit_copies();
}

/// All blocks of the grid have come here, and see what each other wrote. By all threads.
__device__ __forceinline__ void meet() { cooperative_groups::this_grid().sync(); }

/// Warpgroup 0 of a paged pool: a tile is under way while two are there.
template <typename Type, int kHeadDim>
__device__ __forceinline__ void bring_paged_keys(
    const ScoreArgs& a, typename WideTile<Type, kHeadDim>::SharedStorage& shared,
    const ScoreWalk& walk) {
  for (int step = 0; step < kWideStages - 1; ++step) {
    gather_keys<Type, kHeadDim>(a, shared.k[step], step, walk);
  }
  const int met_at = min(walk.first_steps() + 1, walk.steps());
  for (int step = 0; step < walk.steps(); ++step) {
    wait_copies<kWideStages - 2>();
    fence_for_wgmma();
    arrive_warp(&shared.full[stage_of(step)]);
    if (step == met_at) meet();  // beyond, stages become free in pass 2
    // The stage of the tile before this one, once that has been multiplied with.
    const int next = step - 1 + kWideStages;
    if (step > 0 && next < walk.steps()) {
      wait_for(&shared.empty[stage_of(next)], (turn_of(next) - 1) & 1);
    }
    gather_keys<Type, kHeadDim>(a, shared.k[stage_of(next)], next, walk);
  }
  if (met_at >= walk.steps()) meet();
}

/// Warpgroup 0: brings the tiles of the walk. Those of pass 2 come while the consumers finish
/// pass 1.
template <typename Type, int kHeadDim>
__device__ __forceinline__ void bring_keys(const WideScoreArgs& args,
                                           typename WideTile<Type, kHeadDim>::SharedStorage& shared,
                                           const ScoreWalk& walk) {
  using Tile = WideTile<Type, kHeadDim>;
  const int met_at = min(walk.first_steps() + kWideStages, walk.steps());
  const auto bring = [&](int from, int to) {
    for (int step = from; step < to; ++step) {
      const int stage = stage_of(step);
      if (step >= kWideStages) wait_for(&shared.empty[stage], (turn_of(step) - 1) & 1);
      arrive_expecting(&shared.full[stage], Tile::kTileBytes);
#pragma unroll
      for (int c = 0; c < Tile::kHalves; ++c) {
        copy_tile(shared.k[stage] + c * (Tile::kHalfBytes / 16), &args.k_map,
                  {walk.tile(step) * kWideKeys, c, static_cast<int>(blockIdx.z)},
                  &shared.full[stage]);
      }
    }
  };
  if (threadIdx.x == 0) bring(0, met_at);
  __syncwarp();
  meet();  // beyond, stages become free in pass 2
  if (threadIdx.x == 0) bring(met_at, walk.steps());
}

/// Steps [from, to) by a warpgroup: finish(d, tile, half) on each product: 64 rows by 128 columns,
/// d is the thread's share. kQueriesFirst: queries are the rows of a product, else keys.
template <typename Type, int kHeadDim, bool kQueriesFirst, typename Finish>
__device__ __forceinline__ void multiply_keys(
    const ScoreArgs& a, typename WideTile<Type, kHeadDim>::SharedStorage& shared,
    const ScoreWalk& walk, int from, int to, int head, Finish&& finish) {
  using Tile = WideTile<Type, kHeadDim>;
  const int heads = num_heads(a);
  const int next_head = head + 1 < heads ? head + 1 : 0;
  const uint32_t q = shared_address(shared.q[head]);
  const uint32_t k = shared_address(shared.k);
  for (int step = from; step < to; ++step) {
    const int stage = stage_of(step);
    const uint32_t k_tile = k + static_cast<uint32_t>(stage) * Tile::kTileBytes;
    wait_for(&shared.full[stage], turn_of(step) & 1);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float d[64];
      if (heads > 1) sync_named(1 + head, 256);
      if (kQueriesFirst) {
        Tile::start(d, q + half * 64 * 128, k_tile);
      } else {
        Tile::start(d, k_tile + half * 64 * 128, q);
      }
      wgmma_wait<1>();  // half of it: the next head's starts while the rest runs
      if (heads > 1) arrive_named(1 + next_head, 256);
      wgmma_wait<0>();
      pin(d);
      if (half == 1) arrive_warp(&shared.empty[stage]);
      finish(d, walk.tile(step), half);
    }
  }
}

/// Barriers, and the queries under way, by all threads.
template <typename Type, int kHeadDim, bool kPaged>
__device__ __forceinline__ void set_up_walk(
    const WideScoreArgs& args, typename WideTile<Type, kHeadDim>::SharedStorage& shared, int role) {
  const int heads = num_heads(args.score);
  if (threadIdx.x == 0) {
    init_barrier(&shared.queries, 1);
    for (int stage = 0; stage < kWideStages; ++stage) {
      init_barrier(&shared.full[stage], kPaged ? 128 / 32 * kWarpArrivals : 1);
      init_barrier(&shared.empty[stage], heads * 128 / 32 * kWarpArrivals);
    }
    fence_barrier_init();
    fetch_queries<Type, kHeadDim>(args, shared);
  }
  __syncthreads();
  // Heads take turns at the tensor cores. Without turns they share them, all finish at once, and
  // then all compute exponentials at once.
  if (heads > 1 && role == heads) arrive_named(1, 256);  // the first turn
}

}  // namespace tsp::cuda
