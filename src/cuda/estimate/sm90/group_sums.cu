// SPDX-License-Identifier: MIT
// xattention's antidiagonal groups on Hopper's warpgroup products: 128 query groups and 256 key
// groups a tile, rows `stride` tokens long. Every block walks tiles; two warpgroups of 64 rows
// multiply, and all their threads bring the tokens, gathered by the index list: a step of 64
// channels is brought two steps before it is multiplied, past the end of a tile the next one's, so
// that copies run under the sums of weights too.
#include "cuda/estimate/operands.cuh"
#include "cuda/launch.h"
#include "cuda/sm90/wgmma.cuh"

namespace tsp::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTileRows = 128;
constexpr int kTileCols = kWideParts * kWidePart;
constexpr int kStages = 4;
constexpr int kAhead = 2;  // steps under way: one stage is multiplied, one may still be
constexpr int kStepChannels = 64;
constexpr int kChunks = kStepChannels / 8;  // 16-byte chunks of a row of a stage
constexpr int kRowsAtOnce = kThreads / kChunks;

struct SharedStorage {
  uint4 q[kStages][kTileRows * kChunks];
  uint4 k[kStages][kTileCols * kChunks];
};

using Groups = Operands<Product::kGroups>;

/// The tiles of all heads of a launch in one line: rows are taken in pairs of a short one and a
/// long one, which have about as many tiles together as every other pair.
struct TileOrder {
  int32_t row_tiles;  // of the head with the most
  int32_t line;       // room for the tiles of a pair
  int32_t total;
};
struct TilePlace {
  int32_t head, row, col;  // of the launch, in tiles
  int32_t end_row;         // row group after the tile's last; 0: no such tile
};

__device__ __forceinline__ int32_t tiles_of(int32_t n, int32_t tile) {
  return (n + tile - 1) / tile;
}

__device__ __forceinline__ bool have_common_factor(int32_t a, int32_t b) {
  while (b != 0) {
    const int32_t rest = a % b;
    a = b;
    b = rest;
  }
  return a > 1;
}

__device__ __forceinline__ TileOrder make_order(const EstimateArgs& a, const LogitRows& rows) {
  int32_t most_rows = 0, first_cols = 0, last_cols = 0;
  const int heads = a.sets.indices == nullptr ? 1 : rows.num_heads;  // without lists all are alike
  for (int h = 0; h < heads; ++h) {
    const Groups in(a, rows.first_head + h);
    const int32_t end = min(in.num_rows(), rows.first_row + rows.num_rows);
    if (end <= rows.first_row) continue;
    const int32_t first_end = min(rows.first_row + kTileRows, end);
    most_rows = max(most_rows, end - rows.first_row);
    first_cols = max(first_cols, tiles_of(in.visible(first_end - 1), kTileCols));
    last_cols = max(last_cols, tiles_of(in.visible(end - 1), kTileCols));
  }
  TileOrder order;
  order.row_tiles = tiles_of(most_rows, kTileRows);
  // Rounding, and a last tile of few rows, may give a pair up to two more than the first and last.
  // Without a common factor with the grid: blocks that always came to the same place of a line
  // would have nothing to do where no pair has a tile there.
  order.line = first_cols + last_cols + 2;
  while (have_common_factor(order.line, static_cast<int32_t>(gridDim.x))) ++order.line;
  order.total = (order.row_tiles + 1) / 2 * order.line * rows.num_heads;
  return order;
}

__device__ __forceinline__ TilePlace place_at(const EstimateArgs& a, const LogitRows& rows,
                                              const TileOrder& order, int32_t index) {
  const int32_t of_head = (order.row_tiles + 1) / 2 * order.line;
  TilePlace at;
  at.head = index / of_head;
  const int32_t pair = (index - at.head * of_head) / order.line;
  at.col = index - at.head * of_head - pair * order.line;
  at.end_row = 0;
  const Groups in(a, rows.first_head + at.head);
  const int32_t end = min(in.num_rows(), rows.first_row + rows.num_rows);
  const auto columns = [&](int32_t row) {
    const int32_t first = rows.first_row + row * kTileRows;
    if (first >= end) return 0;
    return tiles_of(in.visible(min(first + kTileRows, end) - 1), kTileCols);
  };
  const int32_t row_tiles = tiles_of(max(0, end - rows.first_row), kTileRows);  // of this head
  at.row = pair;
  int32_t here = pair < (row_tiles + 1) / 2 ? columns(pair) : 0;
  if (at.col >= here && here > 0) {
    at.col -= here;
    at.row = row_tiles - 1 - pair;
    here = at.row == pair ? 0 : columns(at.row);
  }
  if (at.col < here) at.end_row = min(rows.first_row + (at.row + 1) * kTileRows, end);
  return at;
}

/// Tiles of this block, from `index` on; end_row 0 after the last.
__device__ __forceinline__ TilePlace next_tile(const EstimateArgs& a, const LogitRows& rows,
                                               const TileOrder& order, int32_t& index) {
  TilePlace at{0, 0, 0, 0};
  while (index < order.total && at.end_row == 0) {
    at = place_at(a, rows, order, index);
    index += static_cast<int32_t>(gridDim.x);
  }
  return at;
}

/// Where a thread's rows of a tile come from: one of eight 16-byte chunks, rows 32 apart.
using From = Sources<Product::kGroups, kTileRows / kRowsAtOnce, kTileCols / kRowsAtOnce>;
static_assert(From::kApart == kRowsAtOnce);

/// Starts the copies of one step: 64 channels of a segment of every row and column of a tile.
__device__ __forceinline__ void fetch(const EstimateArgs& a, SharedStorage& shared,
                                      const From& from, int first_channel, int stage) {
  const int chunk = static_cast<int>(threadIdx.x) % kChunks;
  const int channel = first_channel + chunk * 8;
  const int first = static_cast<int>(threadIdx.x) / kChunks;
  const int to = first * kChunks + (chunk ^ (first & 7));
  // Without a source zeros are written; the address is then one that exists.
#pragma unroll
  for (int i = 0; i < kTileRows / kRowsAtOnce; ++i) {
    copy_async(&shared.q[stage][to + i * kRowsAtOnce * kChunks],
               (from.q[i] != nullptr ? from.q[i] : a.q.data) + channel, from.q[i] != nullptr);
  }
#pragma unroll
  for (int i = 0; i < kTileCols / kRowsAtOnce; ++i) {
    copy_async(&shared.k[stage][to + i * kRowsAtOnce * kChunks],
               (from.k[i] != nullptr ? from.k[i] : a.k.data) + channel, from.k[i] != nullptr);
  }
}

/// Of four sums, each spread over the four lanes of a row, a lane's own one.
__device__ __forceinline__ float add_quad(float s0, float s1, float s2, float s3) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool upper = (lane & 2) != 0, odd = (lane & 1) != 0;
  float even = (upper ? s2 : s0) + __shfl_xor_sync(~0u, upper ? s0 : s2, 2);
  float other = (upper ? s3 : s1) + __shfl_xor_sync(~0u, upper ? s1 : s3, 2);
  return (odd ? other : even) + __shfl_xor_sync(~0u, odd ? even : other, 1);
}

/// The logarithms of the parts' sums of one tile: d as wgmma leaves it. By the four lanes of a row.
__device__ __forceinline__ void finish(const EstimateArgs& a, const LogitRows& rows,
                                       const TilePlace& at, float (&d)[128]) {
  const Groups in(a, rows.first_head + at.head);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int in_tile = static_cast<int>(threadIdx.x) / 32 * 16 + lane / 4;
  const float scale = in.scale();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int local = at.row * kTileRows + in_tile + half * 8;
    const int row = rows.first_row + local;
    const bool there = row < at.end_row;
    // Columns of the tile that the row sees, from the lane's first on.
    const int seen = (there ? in.visible(row) - at.col * kTileCols : 0) - lane % 4 * 2;
    float max = -INFINITY, check = 0.f;
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      float& x = d[i / 2 * 4 + half * 2 + i % 2];
      const bool sees = i / 2 * 8 + i % 2 < seen;
      x *= scale;
      check = fmaf(sees ? x : 0.f, 0.f, check);  // NaN where x is not finite
      x = sees ? x : -INFINITY;
      max = fmaxf(max, x);
    }
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      max = fmaxf(max, __shfl_xor_sync(~0u, max, step));
      check += __shfl_xor_sync(~0u, check, step);
    }
    const float from = max == -INFINITY ? 0.f : max;
    float* const out = a.logits + (int64_t{at.head} * rows.num_rows + local) * rows.stride +
                       at.col * kWideParts + lane % 4;
#pragma unroll
    for (int j = 0; j < kWideParts; j += 4) {
      float part[4];
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const int i = (j + p) * 4 + half * 2;
        part[p] = exp2_fast(d[i] - from) + exp2_fast(d[i + 1] - from);
      }
      const float sum = add_quad(part[0], part[1], part[2], part[3]);
      if (there) out[j] = sum == 0.f ? -INFINITY + check : from + __log2f(sum) + check;
    }
  }
}

/// Grid: as many blocks as multiprocessors.
template <typename Type>
__global__ void __launch_bounds__(kThreads, 1)
    wide_group_sums_kernel(const __grid_constant__ EstimateArgs a,
                           const __grid_constant__ LogitRows rows) {
  await_previous();
  extern __shared__ __align__(1024) unsigned char raw[];
  auto& shared = *reinterpret_cast<SharedStorage*>(raw);
  const TileOrder order = make_order(a, rows);
  const int num_steps = a.stride * (a.head_dim / kStepChannels);
  int32_t index = static_cast<int32_t>(blockIdx.x);
  TilePlace coming = next_tile(a, rows, order, index);  // whose steps are brought
  TilePlace at = coming;                                // whose steps are multiplied
  Groups in(a, rows.first_head + coming.head);
  From from;
  int segment = 0, channel = 0;
  const auto fetch_next = [&](int stage) {
    if (coming.end_row != 0) {
      if (channel == 0) {
        const int first = static_cast<int>(threadIdx.x) / kChunks;
        from.locate(in, rows.first_row + coming.row * kTileRows + first, coming.end_row,
                    coming.col * kTileCols + first, in.visible(coming.end_row - 1), segment);
      }
      fetch(a, shared, from, channel, stage);
      channel += kStepChannels;
      if (channel == a.head_dim) {
        channel = 0;
        ++segment;
      }
      if (segment == a.stride) {
        segment = 0;
        coming = next_tile(a, rows, order, index);
        in = Groups(a, rows.first_head + coming.head);
      }
    }
    commit_copies();
  };
#pragma unroll
  for (int stage = 0; stage < kAhead; ++stage) fetch_next(stage);
  const int warpgroup = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0);
  int stage = 0;
  float d[128];
  while (at.end_row != 0) {
    TilePlace following = coming;
#pragma unroll 1
    for (int step = 0; step < num_steps; ++step) {
      wait_copies<kAhead - 1>();
      fence_for_wgmma();
      __syncthreads();
      const uint32_t q =
          shared_address(shared.q[stage]) + static_cast<uint32_t>(warpgroup * 64 * kChunks * 16);
      const uint64_t q_tile = tile_descriptor(q);
      const uint64_t k_tile = tile_descriptor(shared_address(shared.k[stage]));
      wgmma_fence();
#pragma unroll
      for (int part = 0; part < kStepChannels / 16; ++part) {
        wgmma<Type>(d, q_tile + part * 2, k_tile + part * 2, step + part > 0);
      }
      wgmma_commit();
      // That stage's product is two steps old: every thread has waited for it before the barrier.
      fetch_next((stage + kAhead) % kStages);
      wgmma_wait<1>();
      stage = (stage + 1) % kStages;
      if (step == num_steps - 2) following = coming;
    }
    wgmma_wait<0>();
    pin(d);
    finish(a, rows, at, d);
    at = following;
  }
}

}  // namespace

tsp_status_t launch_wide_group_sums(const EstimateArgs& a, const LogitRows& rows, int32_t num_sms,
                                    cudaStream_t stream) {
  return launch("estimate: sums of groups",
                a.bf16 ? wide_group_sums_kernel<Bf16> : wide_group_sums_kernel<F16>,
                dim3(static_cast<unsigned>(num_sms)), dim3(kThreads), sizeof(SharedStorage), stream,
                a, rows);
}

}  // namespace tsp::cuda
