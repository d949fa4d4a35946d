// SPDX-License-Identifier: MIT
// estimate: logits on tensor cores, 128 x 128 a block. A row is `segments` rows of q end to end,
// and a column as many rows of k: xattention's antidiagonals are t = 0 .. s - 1 of q entry
// first + s - 1 - t with k entry j * s + t, a mean's two 16-bit parts are segments that share q.
#include "cuda/estimate/estimate.h"
#include "cuda/launch.h"
#include "cuda/sets.cuh"
#include "cuda/sm80/mma.cuh"

namespace tsp::cuda {
namespace {

constexpr int kThreads = 256;  // 2 x 4 warps of 64 rows and 32 columns
constexpr int kStages = 3;
constexpr int kStepChannels = 64;
constexpr int kChunks = kStepChannels / 8;
constexpr int kRowTiles = 4;  // m16 of a warp
constexpr int kColTiles = 4;  // n8 of a warp

struct SharedStorage {
  uint4 q[kStages][kProductTile * kChunks];
  uint4 k[kStages][kProductTile * kChunks];
};

/// Where the rows and columns of a head lie.
struct Operands {
  const EstimateArgs& a;
  BlockCut cut;
  const int32_t* list;
  int32_t head, kv_head, base;
  int32_t segments;
  int32_t stride;      // entries between rows
  int32_t key_stride;  // entries between columns
  RowsOf of;

  __device__ Operands(const EstimateArgs& args, const LogitRows& rows, int head_index)
      : a(args),
        cut(args.cuts[head_index]),
        list(list_of(args.sets, head_index / args.sets.heads_per_set)),
        head(head_index),
        kv_head(args.kv_head_of(head_index)),
        of(rows.of) {
    const bool lines = of == RowsOf::kLines;
    stride = of == RowsOf::kGroups ? a.stride : 1;
    key_stride = of == RowsOf::kFlash ? a.block : stride;
    segments = of == RowsOf::kGroups ? a.stride : of == RowsOf::kFlash ? 2 : 1;
    base = lines ? cut.count - a.line_rows(cut, a.kind == TSP_PATTERN_MINFERENCE) : cut.first_query;
  }
  __device__ int num_rows() const { return (cut.count - base + stride - 1) / stride; }
  /// Columns that row i sees.
  __device__ int visible(int i) const {
    if (of == RowsOf::kFlash) return cut.visible(i / a.block, a.block);
    return (min(base + (i + 1) * stride, cut.count) - 1) / stride + 1;
  }
  __device__ const uint16_t* query(int i, int segment) const {
    const int entry = base + i * stride + (of == RowsOf::kFlash ? 0 : stride - 1 - segment);
    if (entry >= cut.count) return nullptr;
    return a.q.row(position_of(list, entry) - (a.k_len - a.q_len), head);
  }
  __device__ const uint16_t* key(int j, int segment) const {
    if (of == RowsOf::kFlash) {
      if (j >= cut.key_blocks(a.block)) return nullptr;
      const int64_t block = int64_t{a.unit_of(head)} * a.key_blocks + j;
      return a.key_parts + (block * 2 + segment) * a.head_dim;
    }
    const int entry = j * key_stride + segment;
    if (entry >= cut.count) return nullptr;
    return a.k.row(position_of(list, entry), kv_head);
  }
};

/// Grid (columns, rows, heads).
template <typename Type>
__global__ void __launch_bounds__(kThreads, 2)
    products_kernel(const __grid_constant__ EstimateArgs a,
                    const __grid_constant__ LogitRows rows) {
  await_previous();
  extern __shared__ __align__(1024) unsigned char raw[];
  auto& shared = *reinterpret_cast<SharedStorage*>(raw);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first_col = static_cast<int>(blockIdx.x) * kProductTile;
  const int first_local = static_cast<int>(blockIdx.y) * kProductTile;
  const int first_row = rows.first_row + first_local;
  const Operands in(a, rows, rows.first_head + static_cast<int>(blockIdx.z));
  const int end_row =
      min(in.num_rows(), min(first_row + kProductTile, rows.first_row + rows.num_rows));
  if (first_row >= end_row || first_col >= in.visible(end_row - 1)) return;

  const int steps_per_segment = a.head_dim / kStepChannels;
  const int num_steps = in.segments * steps_per_segment;
  const auto fetch = [&](int step) {
    if (step < num_steps) {
      const int segment = step / steps_per_segment;
      const int channel = step % steps_per_segment * kStepChannels;
      uint4* const s_q = shared.q[step % kStages];
      uint4* const s_k = shared.k[step % kStages];
#pragma unroll
      for (int i = 0; i < kProductTile * kChunks / kThreads; ++i) {
        const int index = static_cast<int>(threadIdx.x) + i * kThreads;
        const int row = index / kChunks, chunk = index % kChunks;
        const uint16_t* const q =
            first_row + row < end_row ? in.query(first_row + row, segment) : nullptr;
        const uint16_t* const k = in.key(first_col + row, segment);
        // Without a source zeros are written; the address is then one that exists.
        copy_async(s_q + swizzled<kChunks>(row, chunk),
                   (q != nullptr ? q : a.q.data) + channel + chunk * 8, q != nullptr);
        copy_async(s_k + swizzled<kChunks>(row, chunk),
                   (k != nullptr ? k : a.k.data) + channel + chunk * 8, k != nullptr);
      }
    }
    commit_copies();
  };

  float sum[kRowTiles][kColTiles][4];
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int c = 0; c < kColTiles; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[r][c][i] = 0.f;
    }
  }
  const int warp_row = warp / 4 * 64, warp_col = warp % 4 * 32;
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) fetch(stage);
  for (int step = 0; step < num_steps; ++step) {
    wait_copies<kStages - 2>();
    __syncthreads();
    fetch(step + kStages - 1);
    const uint32_t s_q = shared_address(shared.q[step % kStages]);
    const uint32_t s_k = shared_address(shared.k[step % kStages]);
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

  const float scale = a.scale_log2 / static_cast<float>(in.stride);
  float* const out = a.logits + int64_t{blockIdx.z} * rows.num_rows * rows.stride;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp_row + r * 16 + half * 8 + lane / 4;
      if (first_row + row >= end_row) continue;
      float* const line = out + int64_t{first_local + row} * rows.stride + first_col + warp_col;
#pragma unroll
      for (int c = 0; c < kColTiles; ++c) {
        *reinterpret_cast<float2*>(line + c * 8 + lane % 4 * 2) =
            make_float2(sum[r][c][half * 2] * scale, sum[r][c][half * 2 + 1] * scale);
      }
    }
  }
}

}  // namespace

tsp_status_t launch_products(const EstimateArgs& a, const LogitRows& rows, cudaStream_t stream) {
  const auto tiles = [](int32_t n) {
    return static_cast<unsigned>((n + kProductTile - 1) / kProductTile);
  };
  return launch(
      "estimate: products", a.bf16 ? products_kernel<Bf16> : products_kernel<F16>,
      dim3(tiles(rows.columns), tiles(rows.num_rows), static_cast<unsigned>(rows.num_heads)),
      dim3(kThreads), sizeof(SharedStorage), stream, a, rows);
}

}  // namespace tsp::cuda
