// SPDX-License-Identifier: MIT
// score: two passes over K with recompute, S^T = K Q^T on tensor cores in both. A warp keeps 32
// query rows as the B operand in registers for the whole kernel and K streams through shared memory
// as the A operand, so one K tile serves all query heads of its KV head. A thread owns 8 queries:
// pass 1 keeps their running maximum and sum, pass 2 adds the weights of a key over the queries.
#pragma once

#include "cuda/launch.h"
#include "cuda/score/score.h"
#include "cuda/score/score_stats.cuh"
#include "cuda/sm80/mma.cuh"

namespace tsp::cuda {

template <typename Type, int kHeadDim>
struct ScoreTile {
  static constexpr int kChunks = kHeadDim / 8;  // 16-byte chunks of a row
  static constexpr int kSteps = kHeadDim / 16;  // k16 steps
  static constexpr int kQueryTiles = kScoreUnitRows / 8;
  static constexpr int kKeyTiles = kScoreTileKeys / 16;

  struct SharedStorage {
    uint4 k[kScoreStages][kScoreTileKeys * kChunks];  // swizzled rows
    float part[2][kScoreWarps][kScoreTileKeys];       // pass 2: weight of a key in one unit
  };
  static_assert(sizeof(SharedStorage) <= kSmallestBlockLimit);

  int warp = static_cast<int>(threadIdx.x) / 32;
  int lane = static_cast<int>(threadIdx.x) % 32;
  uint32_t q[kQueryTiles][kSteps][2];  // B fragments of the warp's unit

  /// Rows of Q straight from memory, once; rows beyond the window are zero.
  __device__ void load_queries(const ScoreArgs& a, int head, int first_row) {
#pragma unroll
    for (int tile = 0; tile < kQueryTiles; ++tile) {
      const int row = first_row + tile * 8 + lane / 4;
      const bool valid = row < a.window_len;
      const uint16_t* source =
          a.q.row(a.q_len - a.window_len + (valid ? row : 0), head) + (lane % 4) * 2;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const auto* pair = reinterpret_cast<const uint32_t*>(source + step * 16);
        q[tile][step][0] = valid ? pair[0] : 0u;
        q[tile][step][1] = valid ? pair[4] : 0u;
      }
    }
  }

  /// Starts the copy of K rows [tile * 64, ...) of one KV head; rows from k_len on are zero.
  static __device__ void fetch(const ScoreArgs& a, uint4* s_k, int kv_head, int tile, int last) {
    if (tile < last) {
#pragma unroll 1  // two turns at most; unrolled they cost registers
      for (int i = 0; i < kScoreTileKeys * kChunks / kScoreThreads; ++i) {
        const int index = static_cast<int>(threadIdx.x) + i * kScoreThreads;
        const int row = index / kChunks;
        const int chunk = index % kChunks;
        const int key = tile * kScoreTileKeys + row;
        const bool valid = key < a.k_len;
        copy_async(s_k + swizzled<kChunks>(row, chunk),
                   a.k.row(valid ? key : 0, kv_head) + chunk * 8, valid);
      }
    }
    commit_copies();
  }

  /// s[query tile][...]: c0, c1 = key lane/4, queries 2 * (lane%4) + {0, 1}; c2, c3 = key + 8.
  __device__ void multiply(float (&s)[kQueryTiles][4], const uint4* s_k, int key_tile) const {
    const uint32_t k_lane =
        lane_address<kChunks>(shared_address(s_k), key_tile * 16 + lane % 16, lane / 16);
#pragma unroll
    for (int tile = 0; tile < kQueryTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) s[tile][i] = 0.f;
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t k[4];
      load_matrix(k, at_chunk(k_lane, step * 2));
#pragma unroll
      for (int tile = 0; tile < kQueryTiles; ++tile) {
        mma<Type>(s[tile], k, q[tile][step][0], q[tile][step][1]);
      }
    }
  }
};

/// Which query rows a warp has in a round.
struct ScoreUnit {
  int head_in_group;
  int first_row;  // in the window
  bool active;
};
__device__ __forceinline__ ScoreUnit unit_of(const ScoreArgs& a, int warp, int round) {
  const int unit = round * kScoreWarps + warp;
  const int head_in_block = unit / a.plan.units_per_head;
  ScoreUnit u;
  u.head_in_group = static_cast<int>(blockIdx.y) * a.plan.heads_per_block + head_in_block;
  u.first_row = (unit - head_in_block * a.plan.units_per_head) * kScoreUnitRows;
  u.active = head_in_block < a.plan.heads_per_block && u.head_in_group < a.group;
  return u;
}

/// Removes the keys a query does not see. `key`: of s[.][0]; `row`: window row of s[0][0].
template <int kQueryTiles>
__device__ __forceinline__ void mask_future(const ScoreArgs& a, float (&s)[kQueryTiles][4], int key,
                                            int row) {
#pragma unroll
  for (int qt = 0; qt < kQueryTiles; ++qt) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int last_seen = min(a.k_len - a.window_len + row + qt * 8 + i % 2, a.k_len - 1);
      if (key + (i / 2) * 8 > last_seen) s[qt][i] = -INFINITY;
    }
  }
}

/// Grid (stat_chunks, head_blocks, Hkv).
template <typename Type, int kHeadDim>
__global__ void __launch_bounds__(kScoreThreads, 1)
    score_stats_kernel(const __grid_constant__ ScoreArgs a) {
  await_previous();
  using Tile = ScoreTile<Type, kHeadDim>;
  extern __shared__ __align__(1024) unsigned char raw[];
  auto& shared = *reinterpret_cast<typename Tile::SharedStorage*>(raw);
  Tile t;
  const int kv_head = static_cast<int>(blockIdx.z);
  const int chunk = static_cast<int>(blockIdx.x);
  const int num_tiles = (a.k_len + kScoreTileKeys - 1) / kScoreTileKeys;
  const int begin = static_cast<int>(int64_t{num_tiles} * chunk / a.plan.stat_chunks);
  const int end = static_cast<int>(int64_t{num_tiles} * (chunk + 1) / a.plan.stat_chunks);
  const int first_masked = a.k_len - a.window_len + 1;  // first key that some query does not see

  for (int round = 0; round < a.plan.rounds; ++round) {
    const ScoreUnit unit = unit_of(a, t.warp, round);
    const int head = kv_head * a.group + (unit.active ? unit.head_in_group : 0);
    t.load_queries(a, head, unit.active ? unit.first_row : a.window_len);
    float max[Tile::kQueryTiles][2], sum[Tile::kQueryTiles][2];
#pragma unroll
    for (int tile = 0; tile < Tile::kQueryTiles; ++tile) {
      max[tile][0] = max[tile][1] = kNoMax;
      sum[tile][0] = sum[tile][1] = 0.f;
    }
    __syncthreads();  // the round before has left the stages
#pragma unroll
    for (int stage = 0; stage < kScoreStages - 1; ++stage) {
      Tile::fetch(a, shared.k[stage], kv_head, begin + stage, end);
    }
    for (int tile = begin; tile < end; ++tile) {
      const int step = tile - begin;
      wait_copies<kScoreStages - 2>();
      __syncthreads();
      Tile::fetch(a, shared.k[(step + kScoreStages - 1) % kScoreStages], kv_head,
                  tile + kScoreStages - 1, end);
      if (!unit.active) continue;
      const uint4* s_k = shared.k[step % kScoreStages];
      if (step == 0) {  // start from the maximum of the chunk's first keys
        float s[Tile::kQueryTiles][4];
        t.multiply(s, s_k, 0);
        mask_future(a, s, tile * kScoreTileKeys + t.lane / 4, unit.first_row + (t.lane % 4) * 2);
#pragma unroll
        for (int qt = 0; qt < Tile::kQueryTiles; ++qt) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            max[qt][c] = fmaxf(max[qt][c], fmaxf(s[qt][c], s[qt][c + 2]) * a.scale_log2);
          }
        }
      }
#pragma unroll 1  // unrolled, 128 registers do not hold it
      for (int key_tile = 0; key_tile < Tile::kKeyTiles; ++key_tile) {
        float s[Tile::kQueryTiles][4];
        t.multiply(s, s_k, key_tile);
        if ((tile + 1) * kScoreTileKeys > first_masked) {
          mask_future(a, s, tile * kScoreTileKeys + key_tile * 16 + t.lane / 4,
                      unit.first_row + (t.lane % 4) * 2);
        }
        // Lazy maximum: exponents relative to the old one, which moves only when one got large.
        float over = 0.f;
#pragma unroll
        for (int qt = 0; qt < Tile::kQueryTiles; ++qt) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            s[qt][i] = fmaf(s[qt][i], a.scale_log2, -max[qt][i % 2]);
            over = fmaxf(over, s[qt][i]);
          }
        }
        if (over > kRescaleAbove) {
#pragma unroll
          for (int qt = 0; qt < Tile::kQueryTiles; ++qt) {
#pragma unroll
            for (int c = 0; c < 2; ++c) {
              const float up = fmaxf(0.f, fmaxf(s[qt][c], s[qt][c + 2]));
              sum[qt][c] *= exp2_fast(-up);
              max[qt][c] += up;
              s[qt][c] -= up;
              s[qt][c + 2] -= up;
            }
          }
        }
#pragma unroll
        for (int qt = 0; qt < Tile::kQueryTiles; ++qt) {
#pragma unroll
          for (int i = 0; i < 4; ++i) sum[qt][i % 2] += exp2_fast(s[qt][i]);
        }
      }
    }
    wait_copies<0>();
    // The eight lanes that share a query, then one (max, sum) per query of this chunk.
    if (unit.active) {
      float2* out = a.stats + (int64_t{head} * a.plan.stat_chunks + chunk) * a.plan.stat_rows +
                    unit.first_row;
#pragma unroll
      for (int qt = 0; qt < Tile::kQueryTiles; ++qt) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float m = max[qt][c], l = sum[qt][c];
          merge_lanes<4, 32>(m, l);
          if (t.lane < 4) out[qt * 8 + t.lane * 2 + c] = make_float2(m, l);
        }
      }
    }
  }
}

/// Grid (mass_chunks, head_blocks, Hkv).
template <typename Type, int kHeadDim>
__global__ void __launch_bounds__(kScoreThreads, 1)
    score_mass_kernel(const __grid_constant__ ScoreArgs a) {
  await_previous();
  using Tile = ScoreTile<Type, kHeadDim>;
  extern __shared__ __align__(1024) unsigned char raw[];
  auto& shared = *reinterpret_cast<typename Tile::SharedStorage*>(raw);
  Tile t;
  const int kv_head = static_cast<int>(blockIdx.z);
  const int chunk = static_cast<int>(blockIdx.x);
  const int num_tiles = (a.prefix_len + kScoreTileKeys - 1) / kScoreTileKeys;
  const int begin = static_cast<int>(int64_t{num_tiles} * chunk / a.plan.mass_chunks);
  const int end = static_cast<int>(int64_t{num_tiles} * (chunk + 1) / a.plan.mass_chunks);
  const float log2_window = log2f(static_cast<float>(a.window_len));

  for (int round = 0; round < a.plan.rounds; ++round) {
    const ScoreUnit unit = unit_of(a, t.warp, round);
    const int head = kv_head * a.group + (unit.active ? unit.head_in_group : 0);
    t.load_queries(a, head, unit.active ? unit.first_row : a.window_len);
    __syncthreads();  // the round before has left the stages
#pragma unroll
    for (int stage = 0; stage < kScoreStages - 1; ++stage) {
      Tile::fetch(a, shared.k[stage], kv_head, begin + stage, end);
    }
    // Weight = 2^(s - shift), the mean over the window. A lane merges one query, then hands it on.
    const int own_row = unit.first_row + t.lane;
    const bool valid = unit.active && own_row < a.window_len;
    const float own_shift = valid ? merge_stats(a, head, own_row) + log2_window : INFINITY;
    float shift[Tile::kQueryTiles][2];
#pragma unroll
    for (int qt = 0; qt < Tile::kQueryTiles; ++qt) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        shift[qt][c] = __shfl_sync(~0u, own_shift, qt * 8 + (t.lane % 4) * 2 + c);
      }
    }
    // One iteration more than tiles: the last only writes.
    for (int tile = begin; tile <= end; ++tile) {
      const int step = tile - begin;
      wait_copies<kScoreStages - 2>();
      __syncthreads();
      Tile::fetch(a, shared.k[(step + kScoreStages - 1) % kScoreStages], kv_head,
                  tile + kScoreStages - 1, end);
      if (step > 0) {
        // The tile before: add up the units of a head, in order. Later rounds add to memory that
        // this block alone owns.
        const int units = min(a.plan.units_per_head, kScoreWarps);
        for (int i = static_cast<int>(threadIdx.x); i < a.plan.heads_per_block * kScoreTileKeys;
             i += kScoreThreads) {
          const int head_in_block = i / kScoreTileKeys;
          const int key = (tile - 1) * kScoreTileKeys + i % kScoreTileKeys;
          const int head_in_group =
              static_cast<int>(blockIdx.y) * a.plan.heads_per_block + head_in_block;
          if (head_in_group >= a.group || key >= a.prefix_len) continue;
          float* out = a.mass + int64_t{kv_head * a.group + head_in_group} * a.prefix_len + key;
          float total = round > 0 ? *out : 0.f;
          for (int u = 0; u < units; ++u) {
            total += shared.part[(step - 1) & 1][head_in_block * units + u][i % kScoreTileKeys];
          }
          *out = total;
        }
      }
      if (tile == end) break;
      const uint4* s_k = shared.k[step % kScoreStages];
#pragma unroll 1  // unrolled, 128 registers do not hold it
      for (int key_tile = 0; key_tile < Tile::kKeyTiles; ++key_tile) {
        float low = 0.f, high = 0.f;  // keys lane/4 and lane/4 + 8
        if (unit.active) {
          float s[Tile::kQueryTiles][4];
          t.multiply(s, s_k, key_tile);
#pragma unroll
          for (int qt = 0; qt < Tile::kQueryTiles; ++qt) {
#pragma unroll
            for (int c = 0; c < 2; ++c) {
              low += exp2_fast(fmaf(s[qt][c], a.scale_log2, -shift[qt][c]));
              high += exp2_fast(fmaf(s[qt][c + 2], a.scale_log2, -shift[qt][c]));
            }
          }
        }
        add_lanes(low, high);
        if (t.lane % 4 == 0) {
          shared.part[step & 1][t.warp][key_tile * 16 + t.lane / 4] = low;
          shared.part[step & 1][t.warp][key_tile * 16 + 8 + t.lane / 4] = high;
        }
      }
    }
    wait_copies<0>();
  }
}

template <typename Type, int kHeadDim>
tsp_status_t launch_score(const ScoreArgs& args, cudaStream_t stream) {
  const size_t shared_bytes = sizeof(typename ScoreTile<Type, kHeadDim>::SharedStorage);
  return launch_passes(score_stats_kernel<Type, kHeadDim>, score_mass_kernel<Type, kHeadDim>,
                       kScoreThreads, shared_bytes, args, stream);
}

}  // namespace tsp::cuda
