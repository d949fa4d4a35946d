// SPDX-License-Identifier: MIT
// score on Hopper's warpgroup products, for windows of up to 128 queries; score_tiles.cuh has
// the schedule.
//   pass 1: S = Q K^T: a thread owns rows, their maxima and sums.
//   pass 2: S^T = K Q^T: a thread adds up its keys' weights.
// Both are one kernel, whose blocks meet in between: the queries stay, and the first tiles of pass
// 2 come under the last products of pass 1.
#pragma once

#include <algorithm>

#include "cuda/score/score_stats.cuh"
#include "cuda/score/sm90/score_tiles.cuh"
#include "cuda/sm90/row_map.h"

namespace tsp::cuda {

/// Running maximum and sum of two rows, over 32 keys each. Nobody looks for a maximum until a sum
/// says that the one so far is too low.
__device__ __forceinline__ void add_weights(const ScoreArgs& a, const float (&s)[64],
                                            float (&max)[2], float (&sum)[2]) {
  for (int attempt = 0;; ++attempt) {
    float part[4] = {};
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      part[i % 4] += exp2_fast(fmaf(s[i], a.scale_log2, -max[i / 2 % 2]));
    }
    const float added[2] = {part[0] + part[1], part[2] + part[3]};
    const bool fits = added[0] <= kRaiseAbove && added[1] <= kRaiseAbove;  // not with a NaN
    if (attempt > 0 || __all_sync(~0u, fits)) {
      sum[0] += added[0];
      sum[1] += added[1];
      return;
    }
    float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int i = 0; i < 64; ++i) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], s[i]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float scaled = top[r] * a.scale_log2;
      if (scaled > max[r]) {
        sum[r] *= exp2_fast(max[r] - scaled);
        max[r] = scaled;
      }
    }
  }
}

/// Hides the keys that a row must not see. `key`: of s[0]; `last_seen`: by the first of two rows.
__device__ __forceinline__ void hide_keys(float (&s)[64], int key, int last_seen, int k_len) {
  const int first[2] = {min(last_seen + 1, k_len) - key, min(last_seen + 9, k_len) - key};
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    if (i / 4 * 8 + i % 2 >= first[i / 2 % 2]) s[i] = -INFINITY;
  }
}

/// A warpgroup of a head: 64 rows a product, of which a thread has `row` and `row` + 8.
template <typename Type, int kHeadDim>
struct WideScore {
  using Tile = WideTile<Type, kHeadDim>;
  using Shared = typename Tile::SharedStorage;

  const ScoreArgs& a;
  Shared& shared;
  const ScoreWalk& walk;
  int local;  // head of the block
  int lane = static_cast<int>(threadIdx.x) % 32;
  int row = static_cast<int>(threadIdx.x) / 32 % 4 * 16 + lane / 4;

  /// Maxima and sums of the block's keys, for all.
  __device__ __forceinline__ void leave_stats() {
    float max[2][2] = {{kNoMax, kNoMax}, {kNoMax, kNoMax}};  // by half of the window and row
    float sum[2][2] = {};
    const int last_seen = a.k_len - a.window_len + row;
    multiply_keys<Type, kHeadDim, true>(
        a, shared, walk, 0, walk.first_steps(), local, [&](float(&s)[64], int tile, int half) {
          if ((tile + 1) * kWideKeys > a.k_len - a.window_len + 1) {
            hide_keys(s, tile * kWideKeys + lane % 4 * 2, last_seen + half * 64, a.k_len);
          }
          add_weights(a, s, max[half], sum[half]);
        });
    const int chunk = static_cast<int>(blockIdx.x);
    if (chunk >= a.plan.stat_chunks) return;
    float2* const out =
        a.stats + (int64_t{head_of(a, local)} * a.plan.stat_chunks + chunk) * a.plan.stat_rows;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float m = max[half][r], l = sum[half][r];
        merge_lanes<1, 4>(m, l);
        const int own_row = half * 64 + row + r * 8;
        if (lane % 4 == 0 && own_row < a.plan.stat_rows) out[own_row] = make_float2(m, l);
      }
    }
  }

  /// What the blocks left for this head's rows.
  __device__ __forceinline__ void read_stats() {
    const int own_row = static_cast<int>(threadIdx.x) % 128;
    shared.shift[local][own_row] =
        own_row < a.window_len
            ? merge_stats(a, head_of(a, local), own_row) + log2f(static_cast<float>(a.window_len))
            : INFINITY;
    sync_named(1 + kWideHeads + local, 128);
  }

  __device__ __forceinline__ void write_mass() {
    float* const out = a.mass + int64_t{head_of(a, local)} * a.prefix_len;
    multiply_keys<Type, kHeadDim, false>(
        a, shared, walk, walk.first_steps(), walk.steps(), local,
        [&](const float(&s)[64], int tile, int half) {
          const auto* shift = reinterpret_cast<const float2*>(shared.shift[local]) + lane % 4;
          float part[4] = {};  // keys row and row + 8, even and odd queries
#pragma unroll
          for (int j = 0; j < 16; ++j) {
            const float2 by = shift[j * 4];
#pragma unroll
            for (int c = 0; c < 4; ++c) {
              part[c] += exp2_fast(fmaf(s[4 * j + c], a.scale_log2, c % 2 == 0 ? -by.x : -by.y));
            }
          }
          float low = part[0] + part[1], high = part[2] + part[3];
          add_lanes(low, high);
          const int key = tile * kWideKeys + half * 64 + row;
          if (lane % 4 == 0) {
            if (key < a.prefix_len) out[key] = low;
            if (key + 8 < a.prefix_len) out[key + 8] = high;
          }
        });
  }
};

/// Grid (chunks, head_blocks, Hkv), all blocks at once.
template <typename Type, int kHeadDim, bool kPaged>
__global__ void __launch_bounds__(kWideThreads, 1)
    wide_score_kernel(const __grid_constant__ WideScoreArgs args) {
  await_previous();
  const ScoreArgs& a = args.score;
  extern __shared__ __align__(1024) unsigned char raw[];
  auto& shared = *reinterpret_cast<typename WideTile<Type, kHeadDim>::SharedStorage*>(raw);
  const ScoreWalk walk(a, static_cast<int>(blockIdx.x));
  const int role = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0);
  set_up_walk<Type, kHeadDim, kPaged>(args, shared, role);
  if (role == 0) {
    if (kPaged) {
      bring_paged_keys<Type, kHeadDim>(a, shared, walk);
    } else {
      bring_keys<Type, kHeadDim>(args, shared, walk);
    }
    return;
  }
  WideScore<Type, kHeadDim> head{a, shared, walk, role - 1};
  const bool has_head = role <= num_heads(a);
  wait_for(&shared.queries, 0);
  if (has_head) head.leave_stats();
  meet();
  if (!has_head) return;
  head.read_stats();
  head.write_mass();
}

template <typename Type, int kHeadDim>
tsp_status_t launch_wide_score(const ScoreArgs& args, cudaStream_t stream) {
  const size_t shared_bytes = sizeof(typename WideTile<Type, kHeadDim>::SharedStorage);
  static_assert(sizeof(typename WideTile<Type, kHeadDim>::SharedStorage) <=
                wide_shared_limit_bytes);
  const dim3 grid(static_cast<unsigned>(std::max(args.plan.stat_chunks, args.plan.mass_chunks)),
                  static_cast<unsigned>(args.plan.head_blocks),
                  static_cast<unsigned>(args.num_kv_heads));
  WideScoreArgs wide{.score = args, .q_map = {}, .k_map = {}};
  Rows window = args.q;
  window.data = args.q.row(args.q_len - args.window_len, 0);  // never paged
  TSP_RETURN_IF_ERROR(make_row_map("score", &wide.q_map, window, args.window_len,
                                   args.num_kv_heads * args.group, kHeadDim, kWideKeys));
  const bool paged = args.k.table != nullptr;
  if (!paged) {
    TSP_RETURN_IF_ERROR(make_row_map("score", &wide.k_map, args.k, args.k_len, args.num_kv_heads,
                                     kHeadDim, kWideKeys));
  }
  const auto kernel =
      paged ? wide_score_kernel<Type, kHeadDim, true> : wide_score_kernel<Type, kHeadDim, false>;
  return launch<Start::kTogether>("score", kernel, grid, dim3(kWideThreads), shared_bytes, stream,
                                  wide);
}

}  // namespace tsp::cuda
