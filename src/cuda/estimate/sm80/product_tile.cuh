// SPDX-License-Identifier: MIT
// Logits of 128 rows and 128 columns on the tensor cores of every chip, left in shared memory: what
// is added up from them takes far less than the products.
#pragma once

#include "cuda/estimate/operands.cuh"
#include "cuda/sm80/mma.cuh"

namespace tsp::cuda {

template <typename Type, Product kOf>
struct ProductTile {
  static constexpr int kThreads = 256;  // 2 x 4 warps of 64 rows and 32 columns
  static constexpr int kStages = 3;
  static constexpr int kStepChannels = 64;
  static constexpr int kChunks = kStepChannels / 8;
  static constexpr int kRowTiles = 4;                                    // m16 of a warp
  static constexpr int kColTiles = 4;                                    // n8 of a warp
  static constexpr int kThreadRows = kProductTile * kChunks / kThreads;  // that a thread brings
  // Eight floats more than columns: the pairs of four rows lie in different banks.
  static constexpr int kLine = kProductTile + 8;

  struct Stages {
    uint4 q[kStages][kProductTile * kChunks];
    uint4 k[kStages][kProductTile * kChunks];
  };
  union SharedStorage {
    Stages stages;
    float logits[kProductTile][kLine];
  };
  using Sums = float[kRowTiles][kColTiles][4];

  /// Brings the steps of a tile, one after the other.
  struct Bringer {
    const Operands<kOf>& in;
    Stages& stages;
    const int first_row, end_row, first_col, end_col;
    const int chunk = static_cast<int>(threadIdx.x) % kChunks;
    const int first = static_cast<int>(threadIdx.x) / kChunks;  // of the thread's rows
    Sources<kOf, kThreadRows, kThreadRows> from;
    int segment = 0, channel = 0;

    /// Starts the copies of the next step, if there is one.
    __device__ __forceinline__ void bring(int stage) {
      if (segment < in.segments()) {
        if (channel == 0) {
          from.locate(in, first_row + first, end_row, first_col + first, end_col, segment);
        }
        const int to = swizzled<kChunks>(first, chunk);  // the same chunk 32 rows on
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
          copy(&stages.q[stage][to + i * 32 * kChunks], from.q[i], in.args->q.data);
          copy(&stages.k[stage][to + i * 32 * kChunks], from.k[i], in.args->k.data);
        }
        channel += kStepChannels;
        if (channel == in.args->head_dim) {
          channel = 0;
          ++segment;
        }
      }
      commit_copies();
    }
    /// Without a source zeros are written; the address is then one that exists.
    __device__ __forceinline__ void copy(uint4* to, const uint16_t* row, const uint16_t* any) {
      copy_async(to, (row != nullptr ? row : any) + channel + chunk * 8, row != nullptr);
    }
  };

  static __device__ __forceinline__ void multiply(uint32_t s_q, uint32_t s_k, int warp_row,
                                                  int warp_col, Sums& sum) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int part = 0; part < kStepChannels / 16; ++part) {
      // Rows: matrices of (row 0-7, low), (8-15, low), (0-7, high), (8-15, high) channels. Columns:
      // (0-7, low), (0-7, high), (8-15, low), (8-15, high).
      uint32_t q[kRowTiles][4], k[kColTiles / 2][4];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        load_matrix(q[r],
                    at_chunk(lane_address<kChunks>(s_q, warp_row + r * 16 + lane % 16, lane / 16),
                             part * 2));
      }
#pragma unroll
      for (int c = 0; c < kColTiles / 2; ++c) {
        load_matrix(
            k[c], at_chunk(lane_address<kChunks>(s_k, warp_col + c * 16 + lane / 16 * 8 + lane % 8,
                                                 lane / 8 % 2),
                           part * 2));
      }
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
        for (int c = 0; c < kColTiles; ++c) {
          mma<Type>(sum[r][c], q[r], k[c / 2][c % 2 * 2], k[c / 2][c % 2 * 2 + 1]);
        }
      }
    }
  }

  /// shared.logits of rows first_row .. end_row - 1 and 128 columns from first_col on, by the whole
  /// block, which is in step afterwards. Rows beyond end_row are zeros.
  static __device__ __forceinline__ void compute(const Operands<kOf>& in, SharedStorage& shared,
                                                 int first_row, int end_row, int first_col) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int warp_row = warp / 4 * 64, warp_col = warp % 4 * 32;
    const int num_steps = in.segments() * (in.args->head_dim / kStepChannels);
    Sums sum;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int c = 0; c < kColTiles; ++c) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[r][c][i] = 0.f;
      }
    }
    __syncthreads();  // what was here before has been read
    Bringer bringer{in, shared.stages, first_row, end_row, first_col, in.visible(end_row - 1)};
#pragma unroll
    for (int stage = 0; stage < kStages - 1; ++stage) bringer.bring(stage);
    for (int step = 0; step < num_steps; ++step) {
      wait_copies<kStages - 2>();
      __syncthreads();
      bringer.bring((step + kStages - 1) % kStages);
      if (first_row + warp_row >= end_row) continue;  // few rows: half of the warps have none
      multiply(shared_address(shared.stages.q[step % kStages]),
               shared_address(shared.stages.k[step % kStages]), warp_row, warp_col, sum);
    }
    wait_copies<0>();
    __syncthreads();
    const float scale = in.scale();
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float* const line = shared.logits[warp_row + r * 16 + half * 8 + lane / 4] + warp_col;
#pragma unroll
        for (int c = 0; c < kColTiles; ++c) {
          *reinterpret_cast<float2*>(line + c * 8 + lane % 4 * 2) =
              make_float2(sum[r][c][half * 2] * scale, sum[r][c][half * 2 + 1] * scale);
        }
      }
    }
    __syncthreads();
  }
};

/// A running maximum of logits to base 2, and the sum of their weights relative to it. NaN where
/// one was not finite.
struct LogSum {
  float max = -INFINITY;
  float sum = 0.f;

  /// Two passes over logits that value(i) gives, i < n.
  template <typename Value>
  __device__ __forceinline__ void add(int n, Value&& value) {
    float top = max, check = 0.f;
    for (int i = 0; i < n; ++i) {
      const float x = value(i);
      top = fmaxf(top, x);
      check = fmaf(x, 0.f, check);  // NaN where x is not finite
    }
    if (n <= 0) return;
    const float from = top == -INFINITY ? 0.f : top;
    float added = 0.f;
    for (int i = 0; i < n; ++i) added += exp2_fast(value(i) - from);
    sum = sum * exp2_fast(max - from) + added + check;
    max = top;
  }
  __device__ __forceinline__ void add(const LogSum& other) {
    const float top = fmaxf(max, other.max);
    const float from = top == -INFINITY ? 0.f : top;
    sum = sum * exp2_fast(max - from) + other.sum * exp2_fast(other.max - from);
    max = top;
  }
  /// -inf of nothing, NaN of what is not finite.
  __device__ __forceinline__ float log2() const {
    return sum == 0.f ? -INFINITY : max + log2f(sum);
  }
};

}  // namespace tsp::cuda
