// SPDX-License-Identifier: MIT
// estimate: how entries are cut, means over blocks, and products of means in f32.
#include "cuda/estimate/estimate.h"
#include "cuda/launch.h"
#include "cuda/ptx.cuh"
#include "cuda/sets.cuh"

namespace tsp::cuda {
namespace {

constexpr int kCutThreads = 256;
constexpr int kMeanThreads = 128;
constexpr int kDotWarps = 8;

/// A warp per head.
__global__ void __launch_bounds__(kCutThreads) cut_kernel(const __grid_constant__ EstimateArgs a) {
  await_previous();
  const int thread = static_cast<int>(blockIdx.x) * kCutThreads + static_cast<int>(threadIdx.x);
  const int head = thread / 32;
  if (a.out.num_columns != nullptr && a.out.columns != nullptr && thread < a.num_sets) {
    a.out.num_columns[thread] = 0;
  }
  if (head >= a.num_heads) return;
  const int32_t n = num_kept(a.sets, a.k_len);
  const int32_t* const list = list_of(a.sets, head / a.sets.heads_per_set);
  const int32_t first = warp_lower_bound(list, n, a.k_len - a.q_len);
  if (threadIdx.x % 32 == 0) a.cuts[head] = {n, first};
}

template <typename Type>
__device__ __forceinline__ uint16_t round_to(float x) {
  return static_cast<uint16_t>(pack<Type>(x, 0.f));
}

/// Grid (blocks, units and heads of the kinds in turn). A thread adds up eight channels of every
/// R-th entry, R = 8 kMeanThreads / D, then the R sums of a channel meet in ascending order.
template <typename Type>
__global__ void __launch_bounds__(kMeanThreads)
    mean_kernel(const __grid_constant__ EstimateArgs a, const MeanOf last) {
  await_previous();
  __shared__ __align__(16) float sums[kMeanThreads * 8];
  const int m = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int line = static_cast<int>(blockIdx.y);
  const bool keys = line < a.units;
  const bool last_queries = last == MeanOf::kLastQueries && line >= a.units + a.num_heads;
  const int head = keys           ? line * (a.num_heads / a.units)
                   : last_queries ? line - a.units - a.num_heads
                                  : line - a.units;
  const BlockCut cut = a.cuts[head];
  int begin = keys ? m * a.block : cut.first_entry(m, a.block);
  int end = min(begin + a.block, cut.count);
  if (last_queries) {
    end = m == 0 ? cut.count : 0;
    begin = end - (m == 0 ? a.line_rows(cut, false) : 0);
  }
  if (begin >= end) return;
  const int32_t* const list = list_of(a.sets, head / a.sets.heads_per_set);
  const Rows& rows = keys ? a.k : a.q;
  const int row_head = keys ? a.kv_head_of(head) : head;
  const int first_token = keys ? 0 : a.k_len - a.q_len;
  const int chunks = a.head_dim / 8, step = kMeanThreads / chunks;
  float sum[8] = {};
#pragma unroll 4
  for (int entry = begin + thread / chunks; entry < end; entry += step) {
    const uint16_t* const row = rows.row(position_of(list, entry) - first_token, row_head);
    const uint4 x = *reinterpret_cast<const uint4*>(row + thread % chunks * 8);
    const uint32_t words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      sum[c] += to_float<Type>(static_cast<uint16_t>(words[c / 2] >> c % 2 * 16));
    }
  }
#pragma unroll
  for (int c = 0; c < 8; c += 4) {
    *reinterpret_cast<float4*>(sums + thread * 8 + c) =
        make_float4(sum[c], sum[c + 1], sum[c + 2], sum[c + 3]);
  }
  __syncthreads();
  const int channel = thread;
  if (channel >= a.head_dim) return;
  float total = 0.f;
  for (int i = 0; i < step; ++i) total += sums[i * a.head_dim + channel];
  const float mean = total / static_cast<float>(end - begin);
  if (last_queries) {
    a.last_means[int64_t{head} * a.head_dim + channel] = mean;
  } else if (!keys) {
    a.query_means[(int64_t{head} * a.query_blocks + m) * a.head_dim + channel] = mean;
  } else if (a.key_parts == nullptr) {
    a.key_means[(int64_t{line} * a.key_blocks + m) * a.head_dim + channel] = mean;
  } else {
    // Two 16-bit values hold 16 bits of the mean and more, and tensor cores add up their products.
    const uint16_t high = round_to<Type>(mean);
    uint16_t* const parts = a.key_parts + (int64_t{line} * a.key_blocks + m) * 2 * a.head_dim;
    parts[channel] = high;
    parts[a.head_dim + channel] = round_to<Type>(mean - to_float<Type>(high));
  }
}

/// Grid (rows, heads), a warp per key block.
__global__ void __launch_bounds__(kDotWarps * 32)
    mean_products_kernel(const __grid_constant__ EstimateArgs a,
                         const __grid_constant__ LogitRows rows) {
  await_previous();
  const int head = rows.first_head + static_cast<int>(blockIdx.y);
  const int m = rows.first_row + static_cast<int>(blockIdx.x);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const BlockCut cut = a.cuts[head];
  const bool guess = rows.of == RowsOf::kGuess;
  if (guess ? cut.queries() == 0 : m >= cut.query_blocks(a.block)) return;
  const int visible = guess ? cut.key_blocks(a.block) : cut.visible(m, a.block);
  const float* const query =
      guess ? a.last_means + int64_t{head} * a.head_dim
            : a.query_means + (int64_t{head} * a.query_blocks + m) * a.head_dim;
  const float* const keys = a.key_means + int64_t{a.unit_of(head)} * a.key_blocks * a.head_dim;
  float* const out = a.logits + (int64_t{blockIdx.y} * rows.num_rows + blockIdx.x) * rows.stride;
  for (int n = static_cast<int>(threadIdx.x) / 32; n < visible; n += kDotWarps) {
    float sum = 0.f;
    for (int d = lane; d < a.head_dim; d += 32) {
      sum += query[d] * keys[int64_t{n} * a.head_dim + d];
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    sum *= a.scale_log2;
    if (lane == 0) out[n] = isfinite(sum) ? sum : NAN;
  }
}

}  // namespace

tsp_status_t launch_cuts(const EstimateArgs& a, cudaStream_t stream) {
  const int threads = std::max(a.num_heads * 32, a.num_sets);
  return launch("estimate: cuts", cut_kernel,
                dim3(static_cast<unsigned>((threads + kCutThreads - 1) / kCutThreads)),
                dim3(kCutThreads), 0, stream, a);
}

tsp_status_t launch_means(const EstimateArgs& a, MeanOf last, cudaStream_t stream) {
  const bool queries = last != MeanOf::kKeys;
  const int blocks = queries ? std::max(a.key_blocks, a.query_blocks) : a.key_blocks;
  const int lines = a.units + a.num_heads * static_cast<int>(last);
  return launch("estimate: means", a.bf16 ? mean_kernel<Bf16> : mean_kernel<F16>,
                dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(lines)),
                dim3(kMeanThreads), 0, stream, a, last);
}

tsp_status_t launch_mean_products(const EstimateArgs& a, const LogitRows& rows,
                                  cudaStream_t stream) {
  return launch("estimate: products of means", mean_products_kernel,
                dim3(static_cast<unsigned>(rows.num_rows), static_cast<unsigned>(rows.num_heads)),
                dim3(kDotWarps * 32), 0, stream, a, rows);
}

}  // namespace tsp::cuda
