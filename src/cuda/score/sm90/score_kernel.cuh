// SPDX-License-Identifier: MIT
// score on Hopper's warpgroup products, for windows of up to 128 queries; score_tiles.cuh has
// the schedule.
//   pass 1: S = Q K^T: a thread owns rows, their maxima and sums.
//   pass 2: S^T = K Q^T: a thread adds up its keys' weights.
#pragma once

#include "cuda/score/score_stats.cuh"
#include "cuda/score/sm90/score_tiles.cuh"

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

/// Grid (stat_chunks, head_blocks, Hkv).
template <typename Type, int kHeadDim>
__global__ void __launch_bounds__(kWideThreads, 1)
    wide_stats_kernel(const __grid_constant__ ScoreArgs a) {
  wait_previous();
  allow_next();  // it may then read what this one reads
  using Tile = WideTile<Type, kHeadDim>;
  extern __shared__ __align__(1024) unsigned char raw[];
  auto& shared = *reinterpret_cast<typename Tile::SharedStorage*>(raw);
  const int chunk = static_cast<int>(blockIdx.x);
  const int num_tiles = (a.k_len + kWideKeys - 1) / kWideKeys;
  const int begin = static_cast<int>(int64_t{num_tiles} * chunk / a.plan.stat_chunks);
  const int end = static_cast<int>(int64_t{num_tiles} * (chunk + 1) / a.plan.stat_chunks);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = static_cast<int>(threadIdx.x) / 32 % 4 * 16 + lane / 4;  // and row + 8, of 64
  const int last_seen = a.k_len - a.window_len + row;

  float max[2][2] = {{kNoMax, kNoMax}, {kNoMax, kNoMax}};  // by half of the window and row
  float sum[2][2] = {};
  walk_keys<Type, kHeadDim, true>(
      a, shared, begin, end, [] {},
      [&](float(&s)[64], int tile, int half) {
        const int key = tile * kWideKeys + lane % 4 * 2;
        if ((tile + 1) * kWideKeys > a.k_len - a.window_len + 1) {
          hide_keys(s, key, last_seen + half * 64, a.k_len);
        }
        add_weights(a, s, max[half], sum[half]);
      });
  const int head = head_of(a, static_cast<int>(threadIdx.x) / 128 - 1);
  if (threadIdx.x < 128 || head < 0) return;

#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float m = max[half][r], l = sum[half][r];
      merge_lanes<1, 4>(m, l);
      const int own_row = half * 64 + row + r * 8;
      if (lane % 4 == 0 && own_row < a.plan.stat_rows) {
        a.stats[(int64_t{head} * a.plan.stat_chunks + chunk) * a.plan.stat_rows + own_row] =
            make_float2(m, l);
      }
    }
  }
}

/// Grid (mass_chunks, head_blocks, Hkv).
template <typename Type, int kHeadDim>
__global__ void __launch_bounds__(kWideThreads, 1)
    wide_mass_kernel(const __grid_constant__ ScoreArgs a) {
  using Tile = WideTile<Type, kHeadDim>;
  extern __shared__ __align__(1024) unsigned char raw[];
  auto& shared = *reinterpret_cast<typename Tile::SharedStorage*>(raw);
  const int chunk = static_cast<int>(blockIdx.x);
  const int num_tiles = (a.prefix_len + kWideKeys - 1) / kWideKeys;
  const int begin = static_cast<int>(int64_t{num_tiles} * chunk / a.plan.mass_chunks);
  const int end = static_cast<int>(int64_t{num_tiles} * (chunk + 1) / a.plan.mass_chunks);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int own_key = static_cast<int>(threadIdx.x) / 32 % 4 * 16 + lane / 4;  // and 8 more, of 64
  const int own_head = static_cast<int>(threadIdx.x) / 128 - 1;
  float* const out = a.mass + int64_t{head_of(a, own_head)} * a.prefix_len;

  const auto prepare = [&] {
    wait_previous();
    allow_next();
    const float log2_window = log2f(static_cast<float>(a.window_len));
    for (int i = static_cast<int>(threadIdx.x); i < kWideHeads * Tile::kRows; i += kWideThreads) {
      const int head = head_of(a, i / Tile::kRows);
      const int row = i % Tile::kRows;
      shared.shift[i / Tile::kRows][row] =
          head >= 0 && row < a.window_len ? merge_stats(a, head, row) + log2_window : INFINITY;
    }
  };
  // NOTE: Q and K are read before pass 1 has finished. They are complete: pass 1 lets this kernel
  // start only after everything before it has finished.
  walk_keys<Type, kHeadDim, false>(
      a, shared, begin, end, prepare, [&](const float(&s)[64], int tile, int half) {
        const auto* shift = reinterpret_cast<const float2*>(shared.shift[own_head]) + lane % 4;
        float part[4] = {};  // keys own_key and own_key + 8, even and odd queries
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
        const int key = tile * kWideKeys + half * 64 + own_key;
        if (lane % 4 == 0) {
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
  return launch_passes(wide_stats_kernel<Type, kHeadDim>, wide_mass_kernel<Type, kHeadDim>,
                       kWideThreads, shared_bytes, args, stream);
}

}  // namespace tsp::cuda
