// SPDX-License-Identifier: MIT
// estimate: columns and slashes of the last queries' softmax rows. Products are cheaper than what
// storing their logits would take, so they are made twice: for the sums of the rows, and for the
// weights, whose sums by column and by diagonal leave a tile of keys.
#include "cuda/estimate/sm80/product_tile.cuh"
#include "cuda/launch.h"

namespace tsp::cuda {
namespace {

constexpr int kLineThreads = 128;
constexpr int kShiftWarps = 4;
constexpr int kDiagonals = 2 * kProductTile;  // of a tile, one of them empty

/// A warp per row. Grid (rows, heads).
__global__ void __launch_bounds__(kShiftWarps * 32)
    line_shift_kernel(const __grid_constant__ EstimateArgs a,
                      const __grid_constant__ LineRows rows) {
  await_previous();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = static_cast<int>(blockIdx.x) * kShiftWarps + static_cast<int>(threadIdx.x) / 32;
  const Operands<Product::kLines> in(a, rows.first_head + static_cast<int>(blockIdx.y));
  if (row >= in.num_rows()) return;
  const int64_t at = int64_t{blockIdx.y} * rows.num_rows + row;
  const float2* const stats = a.line_stats + at * rows.col_chunks();
  constexpr int kKeys = kTilesAtOnce * kProductTile;  // of a chunk
  const int chunks = (in.visible(row) + kKeys - 1) / kKeys;
  LogSum sum;
  for (int i = lane; i < chunks; i += 32) sum.add(LogSum{stats[i].x, stats[i].y});
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    sum.add(LogSum{__shfl_xor_sync(~0u, sum.max, step), __shfl_xor_sync(~0u, sum.sum, step)});
  }
  if (lane == 0) a.line_shift[at] = sum.log2();
}

/// Grid (columns, rows, heads).
template <typename Type>
__global__ void __launch_bounds__(256, 2) line_sums_kernel(const __grid_constant__ EstimateArgs a,
                                                           const __grid_constant__ LineRows rows) {
  using Tile = ProductTile<Type, Product::kLines>;
  await_previous();
  extern __shared__ __align__(1024) unsigned char raw[];
  auto& shared = *reinterpret_cast<typename Tile::SharedStorage*>(raw);
  __shared__ float half_columns[kProductTile];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int first_col = static_cast<int>(blockIdx.x) * kProductTile;
  const int first_row = static_cast<int>(blockIdx.y) * kProductTile;
  const Operands<Product::kLines> in(a, rows.first_head + static_cast<int>(blockIdx.z));
  const int end_row = min(first_row + kProductTile, in.num_rows());
  if (first_row >= end_row || first_col >= in.visible(end_row - 1)) return;
  Tile::compute(in, shared, first_row, end_row, first_col);

  const int count = end_row - first_row;
  const float* const shift = a.line_shift + int64_t{blockIdx.z} * rows.num_rows + first_row;
#pragma unroll 4
  for (int r = thread / 32; r < count; r += Tile::kThreads / 32) {
    const float by = shift[r];
    const int seen = in.visible(first_row + r) - first_col;
#pragma unroll
    for (int c = lane; c < kProductTile; c += 32) {
      float& x = shared.logits[r][c];
      x = c < seen ? exp2_fast(x - by) : 0.f;
    }
  }
  __syncthreads();
  // Two threads own a column, every other 64 rows of it.
  const int col = thread % kProductTile, half = thread / kProductTile;
  float column = 0.f;
#pragma unroll 8
  for (int r = half * 64; r < min(count, half * 64 + 64); ++r) column += shared.logits[r][col];
  if (half == 1) half_columns[col] = column;
  // Diagonal d: the entries whose row is d - 127 beyond their column.
  float diagonal = 0.f;
  const int from = kProductTile - 1 - thread;
#pragma unroll 8
  for (int r = max(0, -from); r < min(count, kProductTile - from); ++r) {
    diagonal += shared.logits[r][r + from];
  }
  const int64_t row_tile = int64_t{blockIdx.z} * rows.row_tiles + blockIdx.y;
  a.diagonals[(row_tile * rows.col_tiles + blockIdx.x) * kDiagonals + thread] = diagonal;
  __syncthreads();
  if (half == 0 && first_col + col < in.cut.count) {
    a.head_columns[row_tile * a.k_len + first_col + col] = column + half_columns[col];
  }
}

/// What a head gives to column t.
__device__ __forceinline__ float column_of(const EstimateArgs& a, const LineRows& rows,
                                           const BlockCut& cut, int base, int local_head, int t) {
  float sum = 0.f;
  for (int tile = 0; base + tile * kProductTile < cut.count; ++tile) {
    const int last = min(base + (tile + 1) * kProductTile, cut.count) - 1;  // entry
    if (t / kProductTile * kProductTile > last) continue;  // no row of it sees this tile of keys
    sum += a.head_columns[(int64_t{local_head} * rows.row_tiles + tile) * a.k_len + t];
  }
  return sum;
}
/// What a head gives to distance d.
__device__ __forceinline__ float slash_of(const EstimateArgs& a, const LineRows& rows,
                                          const BlockCut& cut, int base, int local_head, int d) {
  float sum = 0.f;
  for (int tile = 0; base + tile * kProductTile < cut.count; ++tile) {
    const int first = base + tile * kProductTile;  // entry
    const int last = min(first + kProductTile, cut.count) - 1;
    if (last - d < 0) continue;
    const float* const out =
        a.diagonals + (int64_t{local_head} * rows.row_tiles + tile) * rows.col_tiles * kDiagonals;
    for (int j = max(0, first - d) / kProductTile; j <= (last - d) / kProductTile; ++j) {
      const int at = d - first + j * kProductTile + kProductTile - 1;
      sum += out[int64_t{j} * kDiagonals + at];
    }
  }
  return sum;
}

/// Grid (entries, sets): a thread owns a column and a distance. Heads of `rows` alone; the first of
/// a set starts its sums.
__global__ void __launch_bounds__(kLineThreads)
    add_lines_kernel(const __grid_constant__ EstimateArgs a, const __grid_constant__ LineRows rows,
                     const int first_set, const int first_touched) {
  await_previous();
  const int set = first_touched + static_cast<int>(blockIdx.y);
  const int t = static_cast<int>(blockIdx.x) * kLineThreads + static_cast<int>(threadIdx.x);
  const int heads = a.heads_per_set();
  const BlockCut cut = a.cuts[set * heads];
  if (t >= cut.count) return;
  const int count = a.line_rows(cut, a.kind == TSP_PATTERN_MINFERENCE);
  const int first = max(set * heads, rows.first_head);
  const int end = min((set + 1) * heads, rows.first_head + rows.num_heads);
  const int64_t at = int64_t{set - first_set} * a.k_len + t;
  float column = first == set * heads ? 0.f : a.columns[at];
  float slash = first == set * heads ? 0.f : a.slashes[at];
  const float factor = 1.f / static_cast<float>(count * heads);
  for (int head = first; head < end; ++head) {
    const int local = head - rows.first_head;
    column += column_of(a, rows, cut, cut.count - count, local, t) * factor;
    slash += slash_of(a, rows, cut, cut.count - count, local, t) * factor;
  }
  a.columns[at] = column;
  a.slashes[at] = slash;
}

}  // namespace

tsp_status_t launch_lines(const EstimateArgs& a, const LineRows& rows, int32_t first_set,
                          cudaStream_t stream) {
  const auto heads = static_cast<unsigned>(rows.num_heads);
  const auto col_tiles = static_cast<unsigned>(rows.col_tiles);
  const size_t shared_bytes = sizeof(ProductTile<Bf16, Product::kLines>::SharedStorage);
  TSP_RETURN_IF_ERROR(launch_line_stats(a, rows, stream));
  TSP_RETURN_IF_ERROR(
      launch("estimate: shifts of rows", line_shift_kernel,
             dim3(static_cast<unsigned>((rows.num_rows + kShiftWarps - 1) / kShiftWarps), heads),
             dim3(kShiftWarps * 32), 0, stream, a, rows));
  TSP_RETURN_IF_ERROR(launch("estimate: sums of lines",
                             a.bf16 ? line_sums_kernel<Bf16> : line_sums_kernel<F16>,
                             dim3(col_tiles, static_cast<unsigned>(rows.row_tiles), heads),
                             dim3(256), shared_bytes, stream, a, rows));
  const int first = rows.first_head / a.heads_per_set();
  const int last = (rows.first_head + rows.num_heads - 1) / a.heads_per_set();
  const auto blocks = static_cast<unsigned>((a.k_len + kLineThreads - 1) / kLineThreads);
  return launch("estimate: lines", add_lines_kernel,
                dim3(blocks, static_cast<unsigned>(last - first + 1)), dim3(kLineThreads), 0,
                stream, a, rows, static_cast<int>(first_set), first);
}

}  // namespace tsp::cuda
