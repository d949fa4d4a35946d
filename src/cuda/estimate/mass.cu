// SPDX-License-Identifier: MIT
// estimate: what the rows of a query block give to key blocks, as shares of their softmax. Every
// sum has one owner and one order, so equal bits come out of every run.
#include "cuda/estimate/estimate.h"
#include "cuda/launch.h"
#include "cuda/ptx.cuh"

namespace tsp::cuda {
namespace {

constexpr int kMassThreads = 128;
constexpr int kRowsAtOnce = 64;

/// A row's weights are 2^(value - shift), by one warp: NaN where a value is, infinite where it sees
/// nothing.
__device__ __forceinline__ float shift_of(const float* row, int n) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float max = -INFINITY;
  bool bad = false;
  for (int i = lane; i < n; i += 32) {
    bad = bad || isnan(row[i]);
    max = fmaxf(max, row[i]);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) max = fmaxf(max, __shfl_xor_sync(~0u, max, step));
  if (__any_sync(~0u, bad)) return NAN;
  if (max == -INFINITY) return INFINITY;
  float sum = 0.f;
  for (int i = lane; i < n; i += 32) sum += exp2_fast(row[i] - max);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  return max + log2f(sum);
}

/// Grid (query blocks, sets).
__global__ void __launch_bounds__(kMassThreads)
    mass_kernel(const __grid_constant__ EstimateArgs a, const __grid_constant__ LogitRows rows,
                const __grid_constant__ MapPart part) {
  await_previous();
  __shared__ float shifts[kRowsAtOnce];
  __shared__ int ends[kRowsAtOnce];  // values of a row
  const int thread = static_cast<int>(threadIdx.x);
  const int set = part.first_set + static_cast<int>(blockIdx.y);
  const int m = part.first_block + static_cast<int>(blockIdx.x);
  const int heads = a.heads_per_set();
  const BlockCut cut = a.cuts[set * heads];
  const bool guess = rows.of == RowsOf::kGuess, groups = rows.of == RowsOf::kGroups;
  if (guess ? cut.queries() == 0 : m >= cut.query_blocks(a.block)) return;
  const int visible = guess ? cut.key_blocks(a.block) : cut.visible(m, a.block);
  const int begin = groups ? m * (a.block / a.stride) : m;
  const int end = groups
                      ? min(begin + a.block / a.stride, (cut.queries() + a.stride - 1) / a.stride)
                      : begin + 1;
  float* const mass =
      guess ? a.guess + int64_t{blockIdx.y} * a.key_blocks
            : a.mass + (int64_t{blockIdx.y} * part.num_blocks + blockIdx.x) * a.key_blocks;
  const float factor = 1.f / static_cast<float>((end - begin) * heads);
  for (int h = 0; h < heads; ++h) {
    const int64_t first = int64_t{set * heads + h - rows.first_head} * rows.num_rows;
    for (int at = begin; at < end; at += kRowsAtOnce) {
      const int count = min(kRowsAtOnce, end - at);
      const float* const values = a.logits + (first + at - rows.first_row) * rows.stride;
      __syncthreads();  // shifts before have been read
      for (int r = thread / 32; r < count; r += kMassThreads / 32) {
        int n = visible;
        if (groups) {  // parts of the groups that the row sees
          const int last = min(cut.first_query + (at + r + 1) * a.stride, cut.count) - 1;
          n = last / a.stride / rows.part + 1;
        }
        const float shift = shift_of(values + r * rows.stride, n);
        if (thread % 32 == 0) {
          shifts[r] = shift;
          ends[r] = n;
        }
      }
      __syncthreads();
      for (int n = thread; n < visible; n += kMassThreads) {
        float sum = h == 0 && at == begin ? 0.f : mass[n];
        for (int r = 0; r < count; ++r) {
          const float* const row = values + r * rows.stride;
          const int upto = min((n + 1) * rows.parts_of_block, ends[r]);
          for (int p = n * rows.parts_of_block; p < upto; ++p) {
            sum += exp2_fast(row[p] - shifts[r]);
          }
        }
        mass[n] = h == heads - 1 && at + count == end ? sum * factor : sum;
      }
    }
  }
}

}  // namespace

tsp_status_t launch_mass(const EstimateArgs& a, const LogitRows& rows, const MapPart& part,
                         cudaStream_t stream) {
  return launch("estimate: mass", mass_kernel,
                dim3(static_cast<unsigned>(part.num_blocks), static_cast<unsigned>(part.num_sets)),
                dim3(kMassThreads), 0, stream, a, rows, part);
}

}  // namespace tsp::cuda
