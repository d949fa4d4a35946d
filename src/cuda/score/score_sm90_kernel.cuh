// SPDX-License-Identifier: MIT
// score on Hopper's warpgroup products, for windows of up to 128 queries. The queries of four heads
// stay in shared memory, K streams past them in tiles of 128 keys; each of four warpgroups owns a
// head. A tile is two products for a warpgroup. Warpgroups take turns in pairs: one multiplies
// while the other computes exponentials, which cost as much time as the products.
//   pass 1: S = Q K^T, 64 queries a product: a thread owns rows, their maxima and sums.
//   pass 2: S^T = K Q^T, 64 keys and all queries of a head: a thread adds up its keys' weights.
#pragma once

#include "cuda/launch.h"
#include "cuda/score/score.h"
#include "cuda/score/score_stats.cuh"
#include "cuda/sm90/mbarrier.cuh"
#include "cuda/sm90/wgmma.cuh"

namespace tsp::cuda {

template <typename Type, int kHeadDim>
struct WideTile {
  static constexpr int kRows = kWideKeys;        // of a K tile, and of a head's queries
  static constexpr int kHalves = kHeadDim / 64;  // 128-byte column blocks of a row
  static constexpr int kTileChunks = kRows * kHeadDim / 8;
  static constexpr int kHalfBytes = kRows * 128;
  static constexpr int kItems = 2;  // products of a tile, per warpgroup

  struct SharedStorage {
    uint4 q[kWideHeads][kTileChunks];
    uint4 k[kWideStages][kTileChunks];
    float shift[kWideHeads][kRows];  // pass 2: weight = 2^(s - shift)
    uint64_t full[kWideStages];      // every warp's share of the tile has arrived
    uint64_t empty[kWideStages];     // every warpgroup has multiplied with it
  };

  /// Starts the copy of 128 rows; `row` gives the source, or null for zeros. `any`: some memory.
  template <typename Row>
  static __device__ __forceinline__ void fetch(uint4* tile, const uint16_t* any, Row&& row) {
    constexpr int kChunks = kHeadDim / 8;
#pragma unroll 2
    for (int i = static_cast<int>(threadIdx.x); i < kTileChunks; i += kWideThreads) {
      const int r = i / kChunks;
      const int chunk = i % kChunks;
      const uint16_t* source = row(r);
      const int to = (chunk / 8 * kRows + r) * 8 + ((chunk ^ r) & 7);
      copy_async(tile + to, source != nullptr ? source + chunk * 8 : any, source != nullptr);
    }
  }

  /// One product: rows of `a` (64 of them from its start) times the 128 rows of `b`.
  static __device__ __forceinline__ void start(float (&d)[64], uint32_t a, uint32_t b) {
    wgmma_fence();
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      const uint64_t a_tile = tile_descriptor(a + half * kHalfBytes);
      const uint64_t b_tile = tile_descriptor(b + half * kHalfBytes);
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        wgmma_m64n128k16<Type>(d, a_tile + step * 2, b_tile + step * 2, half + step > 0);
      }
    }
    wgmma_commit();
  }
};

/// What both passes do alike: queries in, K tiles through the stages, products.
/// `finish(d, tile, item)` works off product `item` of a tile. kQueriesFirst: the queries are the
/// rows of the product.
template <typename Type, int kHeadDim, bool kQueriesFirst, typename Finish>
__device__ __forceinline__ void walk_keys(const ScoreArgs& a,
                                          typename WideTile<Type, kHeadDim>::SharedStorage& shared,
                                          int begin, int end, Finish&& finish) {
  using Tile = WideTile<Type, kHeadDim>;
  const int kv_head = static_cast<int>(blockIdx.z);
  const int group = static_cast<int>(threadIdx.x) / 128;  // warpgroup = head of the block

  const auto fetch_keys = [&](int tile) {
    if (tile < end) {
      Tile::fetch(shared.k[(tile - begin) % kWideStages], a.k.data, [&](int r) -> const uint16_t* {
        const int key = tile * kWideKeys + r;
        return key < a.k_len ? a.k.row(key, kv_head) : nullptr;
      });
    }
    commit_copies();
  };
  // One arrival a warp: arrivals are atomics on one word.
  const auto arrive_warp = [&](uint64_t* barrier) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive(barrier);
  };
  const auto publish = [&](int tile) {  // this warp's share is there
    fence_for_wgmma();
    arrive_warp(&shared.full[(tile - begin) % kWideStages]);
  };
  // A warpgroup multiplies when its partner's product is done, and then leaves the turn to it.
  const int partner = group ^ 2;
  const auto start = [&](float(&d)[64], int stage, int item) {
    sync_named(1 + group, 256);
    const uint32_t half = static_cast<uint32_t>(item) * 64 * 128;  // 64 rows further
    const uint32_t q = shared_address(shared.q[group]);
    const uint32_t k = shared_address(shared.k[stage]);
    if (kQueriesFirst) {
      Tile::start(d, q + half, k);
    } else {
      Tile::start(d, k + half, q);
    }
  };

  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kWideStages; ++stage) {
      init_barrier(&shared.full[stage], kWideThreads / 32);
      init_barrier(&shared.empty[stage], kWideThreads / 32);
    }
  }
  fetch_keys(begin);  // with the queries, which were started before
  fetch_keys(begin + 1);
  __syncthreads();
  if (group >= 2) arrive_named(1 + partner, 256);  // the first turn
  wait_copies<1>();
  publish(begin);
  for (int tile = begin; tile < end; ++tile) {
    const int step = tile - begin;
    const int stage = step % kWideStages;
    wait_copies<0>();
    if (tile + 1 < end) publish(tile + 1);
    wait_for(&shared.full[stage], step / kWideStages & 1);
    float d[64];
    start(d, stage, 0);
    wgmma_wait<0>();
    arrive_named(1 + partner, 256);
    pin(d);
    finish(d, tile, 0);
    start(d, stage, 1);
    // Under this product: the tile after the next, once the tile before this one is free.
    if (step > 0 && tile + 2 < end) {
      wait_for(&shared.empty[(step - 1) % kWideStages], (step - 1) / kWideStages & 1);
    }
    fetch_keys(tile + 2);
    wgmma_wait<0>();
    arrive_named(1 + partner, 256);
    pin(d);
    arrive_warp(&shared.empty[stage]);
    finish(d, tile, 1);
  }
  wait_copies<0>();
}

/// Queries of the block's heads into shared memory; heads and rows that are not there become zeros.
template <typename Type, int kHeadDim>
__device__ __forceinline__ void fetch_queries(
    const ScoreArgs& a, typename WideTile<Type, kHeadDim>::SharedStorage& shared) {
  const int first = static_cast<int>(blockIdx.y) * a.plan.heads_per_block;
#pragma unroll 1
  for (int h = 0; h < kWideHeads; ++h) {
    const bool there = h < a.plan.heads_per_block && first + h < a.group;
    const int head = static_cast<int>(blockIdx.z) * a.group + first + h;
    WideTile<Type, kHeadDim>::fetch(shared.q[h], a.q.data, [&](int r) -> const uint16_t* {
      return there && r < a.window_len ? a.q.row(a.q_len - a.window_len + r, head) : nullptr;
    });
  }
}

/// Head of the group that a block's head `h` is, or negative.
__device__ __forceinline__ int head_of(const ScoreArgs& a, int h) {
  const int in_group = static_cast<int>(blockIdx.y) * a.plan.heads_per_block + h;
  if (h >= a.plan.heads_per_block || in_group >= a.group) return -1;
  return static_cast<int>(blockIdx.z) * a.group + in_group;
}

/// Running maximum and sum of two rows, over 32 keys each. `key`: of s[0]; `last_seen`: by the
/// first row. The accumulators are only read: a product may be under way beside them.
template <bool kMasked>
__device__ __forceinline__ void add_weights(const ScoreArgs& a, const float (&s)[64],
                                            float (&max)[2], float (&sum)[2], int key,
                                            int last_seen) {
  const auto seen = [&](int i) {
    const int own_key = key + i / 4 * 8 + i % 2;
    return !kMasked || (own_key <= last_seen + i / 2 % 2 * 8 && own_key < a.k_len);
  };
  float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    top[i / 2 % 2] = fmaxf(top[i / 2 % 2], seen(i) ? s[i] : -INFINITY);
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float scaled = top[h] * a.scale_log2;
    if (scaled - max[h] > kRescaleAbove) {
      sum[h] *= exp2_fast(max[h] - scaled);
      max[h] = scaled;
    }
  }
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    const float x = fmaf(s[i], a.scale_log2, -max[i / 2 % 2]);
    sum[i / 2 % 2] += exp2_fast(seen(i) ? x : -INFINITY);
  }
}

/// Grid (stat_chunks, head_blocks, Hkv).
template <typename Type, int kHeadDim>
__global__ void __launch_bounds__(kWideThreads, 1)
    wide_stats_kernel(const __grid_constant__ ScoreArgs a) {
  await_previous();
  using Tile = WideTile<Type, kHeadDim>;
  extern __shared__ __align__(1024) unsigned char raw[];
  auto& shared = *reinterpret_cast<typename Tile::SharedStorage*>(raw);
  const int chunk = static_cast<int>(blockIdx.x);
  const int num_tiles = (a.k_len + kWideKeys - 1) / kWideKeys;
  const int begin = static_cast<int>(int64_t{num_tiles} * chunk / a.plan.stat_chunks);
  const int end = static_cast<int>(int64_t{num_tiles} * (chunk + 1) / a.plan.stat_chunks);
  const int group = static_cast<int>(threadIdx.x) / 128;
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first_masked = a.k_len - a.window_len + 1;
  fetch_queries<Type, kHeadDim>(a, shared);

  float max[Tile::kItems][2], sum[Tile::kItems][2];  // rows lane/4 and lane/4 + 8
#pragma unroll
  for (int item = 0; item < Tile::kItems; ++item) {
    max[item][0] = max[item][1] = kNoMax;
    sum[item][0] = sum[item][1] = 0.f;
  }
  walk_keys<Type, kHeadDim, true>(
      a, shared, begin, end, [&](const float(&s)[64], int tile, int item) {
        const int key = tile * kWideKeys + lane % 4 * 2;
        const int last_seen = a.k_len - a.window_len + item * 64 + warp * 16 + lane / 4;
        if ((tile + 1) * kWideKeys > first_masked) {
          add_weights<true>(a, s, max[item], sum[item], key, last_seen);
        } else {
          add_weights<false>(a, s, max[item], sum[item], key, last_seen);
        }
      });

#pragma unroll
  for (int item = 0; item < Tile::kItems; ++item) {
    const int head = head_of(a, group);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float m = max[item][h], l = sum[item][h];
#pragma unroll
      for (int lanes = 1; lanes < 4; lanes *= 2) {
        const float other_m = __shfl_xor_sync(~0u, m, lanes);
        const float other_l = __shfl_xor_sync(~0u, l, lanes);
        const float top = fmaxf(m, other_m);
        l = l * exp2_fast(m - top) + other_l * exp2_fast(other_m - top);
        m = top;
      }
      const int row = item * 64 + warp * 16 + h * 8 + lane / 4;
      if (head >= 0 && lane % 4 == 0 && row < a.plan.stat_rows) {
        a.stats[(int64_t{head} * a.plan.stat_chunks + chunk) * a.plan.stat_rows + row] =
            make_float2(m, l);
      }
    }
  }
}

/// Grid (mass_chunks, head_blocks, Hkv).
template <typename Type, int kHeadDim>
__global__ void __launch_bounds__(kWideThreads, 1)
    wide_mass_kernel(const __grid_constant__ ScoreArgs a) {
  await_previous();
  using Tile = WideTile<Type, kHeadDim>;
  extern __shared__ __align__(1024) unsigned char raw[];
  auto& shared = *reinterpret_cast<typename Tile::SharedStorage*>(raw);
  const int chunk = static_cast<int>(blockIdx.x);
  const int num_tiles = (a.prefix_len + kWideKeys - 1) / kWideKeys;
  const int begin = static_cast<int>(int64_t{num_tiles} * chunk / a.plan.mass_chunks);
  const int end = static_cast<int>(int64_t{num_tiles} * (chunk + 1) / a.plan.mass_chunks);
  const int group = static_cast<int>(threadIdx.x) / 128;
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  fetch_queries<Type, kHeadDim>(a, shared);

  const float log2_window = log2f(static_cast<float>(a.window_len));
  for (int i = static_cast<int>(threadIdx.x); i < kWideHeads * Tile::kRows; i += kWideThreads) {
    const int head = head_of(a, i / Tile::kRows);
    const int row = i % Tile::kRows;
    shared.shift[i / Tile::kRows][row] =
        head >= 0 && row < a.window_len ? merge_stats(a, head, row) + log2_window : INFINITY;
  }
  walk_keys<Type, kHeadDim, false>(
      a, shared, begin, end, [&](const float(&s)[64], int tile, int item) {
        const int h = group;
        const auto* shift = reinterpret_cast<const float2*>(shared.shift[h]) + lane % 4;
        float low = 0.f, high = 0.f;  // keys lane/4 and lane/4 + 8 of the warp's 16
#pragma unroll
        for (int j = 0; j < 16; ++j) {
          const float2 by = shift[j * 4];
          low += exp2_fast(fmaf(s[4 * j], a.scale_log2, -by.x)) +
                 exp2_fast(fmaf(s[4 * j + 1], a.scale_log2, -by.y));
          high += exp2_fast(fmaf(s[4 * j + 2], a.scale_log2, -by.x)) +
                  exp2_fast(fmaf(s[4 * j + 3], a.scale_log2, -by.y));
        }
#pragma unroll
        for (int lanes = 1; lanes < 4; lanes *= 2) {
          low += __shfl_xor_sync(~0u, low, lanes);
          high += __shfl_xor_sync(~0u, high, lanes);
        }
        const int head = head_of(a, h);
        const int key = tile * kWideKeys + item * 64 + warp * 16 + lane / 4;
        if (head >= 0 && lane % 4 == 0) {
          float* out = a.mass + int64_t{head} * a.prefix_len;
          if (key < a.prefix_len) out[key] = low;
          if (key + 8 < a.prefix_len) out[key + 8] = high;
        }
      });
}

template <typename Type, int kHeadDim>
tsp_status_t launch_wide_score(const ScoreArgs& args, cudaStream_t stream) {
  const size_t shared_bytes = sizeof(typename WideTile<Type, kHeadDim>::SharedStorage);
  static_assert(sizeof(typename WideTile<Type, kHeadDim>::SharedStorage) <=
                wide_shared_limit_bytes);
  const auto rows = static_cast<unsigned>(args.plan.head_blocks);
  const auto kv_heads = static_cast<unsigned>(args.num_kv_heads);
  TSP_RETURN_IF_ERROR(launch("score_stats", wide_stats_kernel<Type, kHeadDim>,
                             dim3(static_cast<unsigned>(args.plan.stat_chunks), rows, kv_heads),
                             dim3(kWideThreads), shared_bytes, stream, args));
  return launch("score_mass", wide_mass_kernel<Type, kHeadDim>,
                dim3(static_cast<unsigned>(args.plan.mass_chunks), rows, kv_heads),
                dim3(kWideThreads), shared_bytes, stream, args);
}

}  // namespace tsp::cuda
