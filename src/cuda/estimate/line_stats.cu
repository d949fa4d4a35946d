// SPDX-License-Identifier: MIT
// estimate: maxima and sums of the last queries' softmax rows. A block keeps its rows and walks
// over some tiles of keys, whose copies run ahead; what a thread has of a row stays in registers.
#include "cuda/estimate/sm80/product_tile.cuh"
#include "cuda/launch.h"

namespace tsp::cuda {
namespace {

constexpr int kStages = 3;     // of 64 channels of a tile of keys
constexpr int kMostSteps = 2;  // channels of a row in stages

template <typename Type>
struct LineStats {
  using Tile = ProductTile<Type, Product::kLines>;
  static constexpr int kChunks = Tile::kChunks;
  static constexpr int kEach = Tile::kThreadRows;
  static constexpr int kRows = Tile::kRowTiles * 2;  // of a thread
  static constexpr int kColWarps = 4;

  struct SharedStorage {
    uint4 q[kMostSteps][kProductTile * kChunks];
    uint4 k[kStages][kProductTile * kChunks];
    float2 parts[kColWarps][kProductTile];
  };
  static_assert(sizeof(SharedStorage) <= 99 * 1024, "what every chip has for a block");

  const Operands<Product::kLines>& in;
  SharedStorage& shared;
  const int first_row, end_row;
  const int chunk = static_cast<int>(threadIdx.x) % kChunks;
  const int first = static_cast<int>(threadIdx.x) / kChunks;  // of the rows that a thread brings
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  using From = Sources<Product::kLines, kEach, kEach>;

  __device__ __forceinline__ int steps() const { return in.args->head_dim / Tile::kStepChannels; }

  /// Without a source zeros are written; the address is then one that exists.
  __device__ __forceinline__ void copy(uint4* stage, const uint16_t* const (&rows)[kEach],
                                       const uint16_t* any, int step) const {
    const int to = swizzled<kChunks>(first, chunk);  // the same chunk 32 rows on
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const uint16_t* const row = rows[i] != nullptr ? rows[i] : any;
      copy_async(&stage[to + i * 32 * kChunks], row + step * Tile::kStepChannels + chunk * 8,
                 rows[i] != nullptr);
    }
  }
  __device__ __forceinline__ void bring_rows() {
    From from;
    from.locate_rows(in, first_row + first, end_row);
    for (int step = 0; step < steps(); ++step) copy(shared.q[step], from.q, in.args->q.data, step);
  }
  /// Starts the copies of step `at` of the tiles from first_col on, if it is before `end`.
  __device__ __forceinline__ void bring(int at, int end, int first_col) {
    if (at < end) {
      From from;  // found anew for every step: it would be in the way of the products
      from.locate_columns(in, first_col + at / steps() * kProductTile + first,
                          in.visible(end_row - 1));
      copy(shared.k[at % kStages], from.k, in.args->k.data, at % steps());
    }
    commit_copies();
  }
  __device__ __forceinline__ int row_of(int i) const {  // of the tile
    return warp / kColWarps * 64 + i / 2 * 16 + i % 2 * 8 + lane / 4;
  }

  /// A tile's products into what a thread has of its rows.
  __device__ __forceinline__ void add(const typename Tile::Sums& sum, int first_col,
                                      LogSum (&stats)[kRows]) const {
    const float scale = in.scale();
    const int col = first_col + warp % kColWarps * 32 + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = first_row + row_of(i);
      const int seen = row < end_row ? in.visible(row) - col : 0;
      float x[Tile::kColTiles * 2];
      float top = stats[i].max, check = 0.f;
#pragma unroll
      for (int c = 0; c < Tile::kColTiles * 2; ++c) {
        const float logit = sum[i / 2][c / 2][i % 2 * 2 + c % 2] * scale;
        const bool sees = c / 2 * 8 + c % 2 < seen;
        check = fmaf(sees ? logit : 0.f, 0.f, check);  // NaN where one is not finite
        x[c] = sees ? logit : -INFINITY;
        top = fmaxf(top, x[c]);
      }
      const float least = top == -INFINITY ? 0.f : top;
      float added = check;
#pragma unroll
      for (int c = 0; c < Tile::kColTiles * 2; ++c) added += exp2_fast(x[c] - least);
      stats[i].sum = fmaf(stats[i].sum, exp2_fast(stats[i].max - least), added);
      stats[i].max = top;
    }
  }
  /// The rows' statistics over all the block's columns, `apart` from row to row.
  __device__ __forceinline__ void leave(LogSum (&stats)[kRows], float2* out, int64_t apart) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int step = 1; step < 4; step *= 2) {
        stats[i].add(LogSum{__shfl_xor_sync(~0u, stats[i].max, step),
                            __shfl_xor_sync(~0u, stats[i].sum, step)});
      }
      if (lane % 4 == 0) {
        shared.parts[warp % kColWarps][row_of(i)] = make_float2(stats[i].max, stats[i].sum);
      }
    }
    __syncthreads();
    const int row = static_cast<int>(threadIdx.x);
    if (row >= end_row - first_row) return;
    LogSum all{shared.parts[0][row].x, shared.parts[0][row].y};
#pragma unroll
    for (int part = 1; part < kColWarps; ++part) {
      all.add(LogSum{shared.parts[part][row].x, shared.parts[part][row].y});
    }
    out[row * apart] = make_float2(all.max, all.sum);
  }
};

/// Grid (chunks of kTilesAtOnce column tiles, row tiles, heads).
template <typename Type>
__global__ void __launch_bounds__(256, 2) line_stats_kernel(const __grid_constant__ EstimateArgs a,
                                                            const __grid_constant__ LineRows rows) {
  using Stats = LineStats<Type>;
  using Tile = typename Stats::Tile;
  await_previous();
  extern __shared__ __align__(1024) unsigned char raw[];
  auto& shared = *reinterpret_cast<typename Stats::SharedStorage*>(raw);
  const int first_col = static_cast<int>(blockIdx.x) * kTilesAtOnce * kProductTile;
  const int first_row = static_cast<int>(blockIdx.y) * kProductTile;
  const Operands<Product::kLines> in(a, rows.first_head + static_cast<int>(blockIdx.z));
  const int end_row = min(first_row + kProductTile, in.num_rows());
  if (first_row >= end_row || first_col >= in.visible(end_row - 1)) return;
  Stats work{in, shared, first_row, end_row};
  const int left = in.visible(end_row - 1) - first_col;
  const int tiles = min(kTilesAtOnce, (left + kProductTile - 1) / kProductTile);
  const int steps = work.steps(), end = tiles * steps;
  work.bring_rows();
#pragma unroll
  for (int at = 0; at < kStages - 1; ++at) work.bring(at, end, first_col);
  LogSum stats[Stats::kRows];
  const bool has_rows = first_row + work.warp / Stats::kColWarps * 64 < end_row;
  for (int tile = 0; tile < tiles; ++tile) {
    typename Tile::Sums sum = {};
    for (int step = 0; step < steps; ++step) {
      const int at = tile * steps + step;
      wait_copies<kStages - 2>();
      __syncthreads();
      work.bring(at + kStages - 1, end, first_col);
      if (!has_rows) continue;  // few rows: half of the warps have none
      Tile::multiply(shared_address(shared.q[step]), shared_address(shared.k[at % kStages]),
                     work.warp / Stats::kColWarps * 64, work.warp % Stats::kColWarps * 32, sum);
    }
    if (has_rows) work.add(sum, first_col + tile * kProductTile, stats);
  }
  work.leave(stats,
             a.line_stats + (int64_t{blockIdx.z} * rows.num_rows + first_row) * rows.col_chunks() +
                 blockIdx.x,
             rows.col_chunks());
}

}  // namespace

tsp_status_t launch_line_stats(const EstimateArgs& a, const LineRows& rows, cudaStream_t stream) {
  return launch("estimate: rows of lines",
                a.bf16 ? line_stats_kernel<Bf16> : line_stats_kernel<F16>,
                dim3(static_cast<unsigned>(rows.col_chunks()),
                     static_cast<unsigned>(rows.row_tiles), static_cast<unsigned>(rows.num_heads)),
                dim3(256), sizeof(LineStats<Bf16>::SharedStorage), stream, a, rows);
}

}  // namespace tsp::cuda
