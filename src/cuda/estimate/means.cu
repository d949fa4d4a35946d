// SPDX-License-Identifier: MIT
// estimate: how entries are cut, means over blocks, and products of means in f32.
#include "cuda/estimate/estimate.h"
#include "cuda/launch.h"
#include "cuda/ptx.cuh"
#include "cuda/sets.cuh"

namespace tsp::cuda {
namespace {

constexpr int kCutThreads = 256;
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

/// Grid (blocks, heads or units), a thread per channel, entries ascending.
template <typename Type>
__global__ void mean_kernel(const __grid_constant__ EstimateArgs a, const MeanOf of) {
  await_previous();
  const int m = static_cast<int>(blockIdx.x);
  const int channel = static_cast<int>(threadIdx.x);
  const bool keys = of == MeanOf::kKeys;
  const int head = static_cast<int>(blockIdx.y) * (keys ? a.num_heads / a.units : 1);
  const BlockCut cut = a.cuts[head];
  int begin = m * a.block, end = min(begin + a.block, cut.count);
  if (of == MeanOf::kQueries) {
    begin = cut.first_entry(m, a.block);
    end = min(begin + a.block, cut.count);
  } else if (of == MeanOf::kLastQueries) {
    end = cut.count;
    begin = end - a.line_rows(cut, false);
  }
  if (begin >= end) return;
  const int32_t* const list = list_of(a.sets, head / a.sets.heads_per_set);
  const Rows& rows = keys ? a.k : a.q;
  const int row_head = keys ? a.kv_head_of(head) : head;
  const int first_token = keys ? 0 : a.k_len - a.q_len;
  float sum = 0.f;
  for (int entry = begin; entry < end; ++entry) {
    sum += to_float<Type>(rows.row(position_of(list, entry) - first_token, row_head)[channel]);
  }
  const float mean = sum / static_cast<float>(end - begin);
  if (of == MeanOf::kLastQueries) {
    a.last_means[int64_t{head} * a.head_dim + channel] = mean;
    return;
  }
  if (of == MeanOf::kQueries) {
    a.query_means[(int64_t{head} * a.query_blocks + m) * a.head_dim + channel] = mean;
    return;
  }
  const int64_t block = int64_t{blockIdx.y} * a.key_blocks + m;
  if (a.key_parts == nullptr) {
    a.key_means[block * a.head_dim + channel] = mean;
    return;
  }
  // Two 16-bit values hold 16 bits of the mean and more, and tensor cores add up their products.
  const uint16_t high = round_to<Type>(mean);
  uint16_t* const parts = a.key_parts + block * 2 * a.head_dim;
  parts[channel] = high;
  parts[a.head_dim + channel] = round_to<Type>(mean - to_float<Type>(high));
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
    if (lane == 0) out[n] = sum * a.scale_log2;
  }
}

}  // namespace

tsp_status_t launch_cuts(const EstimateArgs& a, cudaStream_t stream) {
  const int threads = std::max(a.num_heads * 32, a.num_sets);
  return launch("estimate: cuts", cut_kernel,
                dim3(static_cast<unsigned>((threads + kCutThreads - 1) / kCutThreads)),
                dim3(kCutThreads), 0, stream, a);
}

tsp_status_t launch_means(const EstimateArgs& a, MeanOf of, cudaStream_t stream) {
  const int blocks = of == MeanOf::kKeys      ? a.key_blocks
                     : of == MeanOf::kQueries ? a.query_blocks
                                              : 1;
  const int heads = of == MeanOf::kKeys ? a.units : a.num_heads;
  return launch("estimate: means", a.bf16 ? mean_kernel<Bf16> : mean_kernel<F16>,
                dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(heads)),
                dim3(static_cast<unsigned>(a.head_dim)), 0, stream, a, of);
}

tsp_status_t launch_mean_products(const EstimateArgs& a, const LogitRows& rows,
                                  cudaStream_t stream) {
  return launch("estimate: products of means", mean_products_kernel,
                dim3(static_cast<unsigned>(rows.num_rows), static_cast<unsigned>(rows.num_heads)),
                dim3(kDotWarps * 32), 0, stream, a, rows);
}

}  // namespace tsp::cuda
