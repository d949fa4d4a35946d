// SPDX-License-Identifier: MIT
// estimate: what rows give to parts of key blocks, xattention's antidiagonal groups and flash's
// query blocks, from tiles of logits that never leave the multiprocessor.
#include "cuda/estimate/sm80/product_tile.cuh"
#include "cuda/launch.h"

namespace tsp::cuda {
namespace {

unsigned tiles_of(int32_t n, int32_t tile) { return static_cast<unsigned>((n + tile - 1) / tile); }

/// kGroups. Grid (columns, rows, heads).
template <typename Type>
__global__ void __launch_bounds__(256, 2)
    group_sums_kernel(const __grid_constant__ EstimateArgs a,
                      const __grid_constant__ LogitRows rows) {
  using Tile = ProductTile<Type, Product::kGroups>;
  await_previous();
  extern __shared__ __align__(1024) unsigned char raw[];
  auto& shared = *reinterpret_cast<typename Tile::SharedStorage*>(raw);
  const int parts = kProductTile / rows.part;  // whole parts of a tile
  const int first_col = static_cast<int>(blockIdx.x) * parts * rows.part;
  const int first_local = static_cast<int>(blockIdx.y) * kProductTile;
  const int first_row = rows.first_row + first_local;
  const Operands<Product::kGroups> in(a, rows.first_head + static_cast<int>(blockIdx.z));
  const int end_row =
      min(in.num_rows(), min(first_row + kProductTile, rows.first_row + rows.num_rows));
  if (first_row >= end_row || first_col >= in.visible(end_row - 1)) return;
  Tile::compute(in, shared, first_row, end_row, first_col);

  float* const out = a.logits + (int64_t{blockIdx.z} * rows.num_rows + first_local) * rows.stride +
                     static_cast<int64_t>(blockIdx.x) * parts;
  for (int i = static_cast<int>(threadIdx.x); i < (end_row - first_row) * parts;
       i += Tile::kThreads) {
    const int row = i / parts, part = i % parts;
    const float* const line = shared.logits[row] + part * rows.part;
    const int seen = in.visible(first_row + row) - first_col - part * rows.part;
    if (seen <= 0) continue;
    LogSum sum;
    sum.add(min(seen, rows.part), [&](int c) { return line[c]; });
    out[row * rows.stride + part] = sum.log2();
  }
}

/// kFlash. Grid (columns, query blocks, heads).
template <typename Type>
__global__ void __launch_bounds__(256, 2)
    joint_sums_kernel(const __grid_constant__ EstimateArgs a,
                      const __grid_constant__ LogitRows rows) {
  using Tile = ProductTile<Type, Product::kBlockMeans>;
  await_previous();
  extern __shared__ __align__(1024) unsigned char raw[];
  auto& shared = *reinterpret_cast<typename Tile::SharedStorage*>(raw);
  __shared__ float2 halves[kProductTile];
  const int first_col = static_cast<int>(blockIdx.x) * kProductTile;
  const int m = rows.first_row + static_cast<int>(blockIdx.y);
  const Operands<Product::kBlockMeans> in(a, rows.first_head + static_cast<int>(blockIdx.z));
  const int begin = m * a.block;
  const int end = min(begin + a.block, in.num_rows());
  if (begin >= end || first_col >= in.visible(begin)) return;
  // Two threads own a column, every other 64 rows of it.
  const int col = static_cast<int>(threadIdx.x) % kProductTile;
  const int half = static_cast<int>(threadIdx.x) / kProductTile;
  const int last_of_block = (first_col + col + 1) * a.block - 1;  // entry
  LogSum sum;
  for (int first = begin; first < end; first += kProductTile) {
    const int end_row = min(first + kProductTile, end);
    Tile::compute(in, shared, first, end_row, first_col);
    // Rows see the blocks that end by them.
    const int row = max(half * 64, last_of_block - (in.base + first));
    const int upto = min(end_row - first, half * 64 + 64);
    sum.add(upto - row, [&](int r) { return shared.logits[row + r][col]; });
  }
  if (half == 1) halves[col] = make_float2(sum.max, sum.sum);
  __syncthreads();
  if (half == 1 || first_col + col >= in.visible(begin)) return;
  sum.add(LogSum{halves[col].x, halves[col].y});
  a.logits[(int64_t{blockIdx.z} * rows.num_rows + blockIdx.y) * rows.stride + first_col + col] =
      sum.log2();
}

}  // namespace

tsp_status_t launch_group_sums(const EstimateArgs& a, const LogitRows& rows, cudaStream_t stream) {
  const int32_t columns = (a.k_len + a.stride - 1) / a.stride;
  return launch(
      "estimate: sums of groups", a.bf16 ? group_sums_kernel<Bf16> : group_sums_kernel<F16>,
      dim3(tiles_of(columns, kProductTile / rows.part * rows.part),
           tiles_of(rows.num_rows, kProductTile), static_cast<unsigned>(rows.num_heads)),
      dim3(256), sizeof(ProductTile<Bf16, Product::kGroups>::SharedStorage), stream, a, rows);
}

tsp_status_t launch_joint_sums(const EstimateArgs& a, const LogitRows& rows, cudaStream_t stream) {
  return launch("estimate: joint sums", a.bf16 ? joint_sums_kernel<Bf16> : joint_sums_kernel<F16>,
                dim3(tiles_of(a.key_blocks, kProductTile), static_cast<unsigned>(rows.num_rows),
                     static_cast<unsigned>(rows.num_heads)),
                dim3(256), sizeof(ProductTile<Bf16, Product::kBlockMeans>::SharedStorage), stream,
                a, rows);
}

}  // namespace tsp::cuda
