// SPDX-License-Identifier: MIT
// estimate: softmax rows of logits, added up by key block, by column and by distance. Every sum has
// one owner and one order, so equal bits come out of every run.
#include <cmath>

#include "cuda/estimate/estimate.h"
#include "cuda/estimate/reduce.cuh"
#include "cuda/launch.h"
#include "cuda/ptx.cuh"

namespace tsp::cuda {
namespace {

constexpr int kMassThreads = 128;
constexpr int kRowThreads = 256;
constexpr int kLineThreads = 128;

/// Largest of a row, NaN where one is not finite. By the whole block.
template <int kThreads>
__device__ __forceinline__ float max_or_nan(const float* row, int n, Reduce<kThreads>& reduce) {
  float max = -INFINITY;
  bool bad = false;
  for (int j = static_cast<int>(threadIdx.x); j < n; j += kThreads) {
    const float x = row[j];
    bad = bad || !isfinite(x);
    max = fmaxf(max, x);
  }
  max = reduce.max(max);
  return __syncthreads_or(bad) != 0 ? NAN : max;
}

/// One softmax over rows begin .. end - 1 of a head and the blocks that end at or before them,
/// whose sums over rows are added to mass. By the whole block; a thread owns columns.
__device__ __forceinline__ void add_joint(float* rows, int64_t stride, int num_rows,
                                          int first_entry, int block, int visible,
                                          Reduce<kMassThreads>& reduce, float* mass) {
  const auto first_seeing = [&](int n) { return max(0, (n + 1) * block - 1 - first_entry); };
  float max = -INFINITY;
  bool bad = false;
  for (int n = static_cast<int>(threadIdx.x); n < visible; n += kMassThreads) {
    for (int r = first_seeing(n); r < num_rows; ++r) {
      const float x = rows[r * stride + n];
      bad = bad || !isfinite(x);
      max = fmaxf(max, x);
    }
  }
  max = reduce.max(max);
  if (__syncthreads_or(bad) != 0) max = NAN;
  float total = 0.f;
  for (int n = static_cast<int>(threadIdx.x); n < visible; n += kMassThreads) {
    float sum = 0.f;
    for (int r = first_seeing(n); r < num_rows; ++r) sum += exp2_fast(rows[r * stride + n] - max);
    rows[n] = sum;
    total += sum;
  }
  total = reduce.sum(total);
  for (int n = static_cast<int>(threadIdx.x); n < visible; n += kMassThreads) {
    mass[n] += total == 0.f ? 0.f : rows[n] / total;
  }
}

/// Grid (query blocks, sets).
__global__ void __launch_bounds__(kMassThreads)
    mass_kernel(const __grid_constant__ EstimateArgs a, const __grid_constant__ LogitRows rows,
                const __grid_constant__ MapPart part) {
  await_previous();
  __shared__ Reduce<kMassThreads> reduce;
  const int set = part.first_set + static_cast<int>(blockIdx.y);
  const int m = part.first_block + static_cast<int>(blockIdx.x);
  const int heads = a.heads_per_set();
  const BlockCut cut = a.cuts[set * heads];
  const bool guess = rows.of == RowsOf::kGuess, groups = rows.of == RowsOf::kGroups;
  if (guess ? cut.queries() == 0 : m >= cut.query_blocks(a.block)) return;
  const int visible = guess ? cut.key_blocks(a.block) : cut.visible(m, a.block);
  const int step = groups ? a.stride : rows.of == RowsOf::kFlash ? 1 : a.block;  // entries a row
  const int begin = m * (a.block / step);
  const int end =
      guess ? begin + 1 : min(begin + a.block / step, (cut.queries() + step - 1) / step);
  const int per_block = groups ? a.block / a.stride : 1;  // columns of a key block
  float* const mass =
      guess ? a.guess + int64_t{blockIdx.y} * a.key_blocks
            : a.mass + (int64_t{blockIdx.y} * part.num_blocks + blockIdx.x) * a.key_blocks;
  for (int n = static_cast<int>(threadIdx.x); n < visible; n += kMassThreads) mass[n] = 0.f;
  for (int h = 0; h < heads; ++h) {
    const int local_head = set * heads + h - rows.first_head;
    if (rows.of == RowsOf::kFlash) {
      add_joint(
          a.logits + (int64_t{local_head} * rows.num_rows + begin - rows.first_row) * rows.stride,
          rows.stride, end - begin, cut.first_query + begin, a.block, visible, reduce, mass);
      continue;
    }
    for (int r = begin; r < end; ++r) {
      float* const row =
          a.logits + (int64_t{local_head} * rows.num_rows + r - rows.first_row) * rows.stride;
      const int hi =
          !groups ? visible : (min(cut.first_query + (r + 1) * step, cut.count) - 1) / step + 1;
      const float max = max_or_nan(row, hi, reduce);
      float total = 0.f;
      for (int n = static_cast<int>(threadIdx.x); n < visible; n += kMassThreads) {
        float sum = 0.f;
        for (int j = n * per_block; j < min((n + 1) * per_block, hi); ++j) {
          sum += exp2_fast(row[j] - max);
        }
        if (n * per_block < hi) row[n * per_block] = sum;
        total += sum;
      }
      total = reduce.sum(total);
      for (int n = static_cast<int>(threadIdx.x); n * per_block < hi; n += kMassThreads) {
        mass[n] += row[n * per_block] / total;
      }
    }
  }
  const int parts = rows.of == RowsOf::kFlash ? 1 : end - begin;
  const float factor = 1.f / static_cast<float>(parts * heads);
  for (int n = static_cast<int>(threadIdx.x); n < visible; n += kMassThreads) mass[n] *= factor;
}

/// Rows to weights, in place. Grid (rows, heads).
__global__ void __launch_bounds__(kRowThreads)
    softmax_kernel(const __grid_constant__ EstimateArgs a, const __grid_constant__ LogitRows rows) {
  await_previous();
  __shared__ Reduce<kRowThreads> reduce;
  const BlockCut cut = a.cuts[rows.first_head + static_cast<int>(blockIdx.y)];
  const int count = a.line_rows(cut, a.kind == TSP_PATTERN_MINFERENCE);
  const int r = static_cast<int>(blockIdx.x);
  if (r >= count) return;
  const int hi = cut.count - count + r + 1;
  float* const row = a.logits + (int64_t{blockIdx.y} * rows.num_rows + r) * rows.stride;
  const float max = max_or_nan(row, hi, reduce);
  float total = 0.f;
  for (int j = static_cast<int>(threadIdx.x); j < hi; j += kRowThreads) {
    const float weight = exp2_fast(row[j] - max);
    row[j] = weight;
    total += weight;
  }
  const float factor = 1.f / reduce.sum(total);
  for (int j = static_cast<int>(threadIdx.x); j < hi; j += kRowThreads) row[j] *= factor;
}

/// Grid (entries, sets): a thread owns a column and a distance. Heads of `rows` alone; the first of
/// a set starts its sums.
__global__ void __launch_bounds__(kLineThreads)
    add_lines_kernel(const __grid_constant__ EstimateArgs a, const __grid_constant__ LogitRows rows,
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
    const float* row = a.logits + int64_t{head - rows.first_head} * rows.num_rows * rows.stride;
    for (int r = 0; r < count; ++r, row += rows.stride) {
      const int entry = cut.count - count + r;
      if (t > entry) continue;
      column += row[t] * factor;
      slash += row[entry - t] * factor;
    }
  }
  a.columns[at] = column;
  a.slashes[at] = slash;
}

}  // namespace

tsp_status_t launch_mass(const EstimateArgs& a, const LogitRows& rows, const MapPart& part,
                         cudaStream_t stream) {
  return launch("estimate: mass", mass_kernel,
                dim3(static_cast<unsigned>(part.num_blocks), static_cast<unsigned>(part.num_sets)),
                dim3(kMassThreads), 0, stream, a, rows, part);
}

tsp_status_t launch_lines(const EstimateArgs& a, const LogitRows& rows, int32_t first_set,
                          cudaStream_t stream) {
  TSP_RETURN_IF_ERROR(
      launch("estimate: softmax", softmax_kernel,
             dim3(static_cast<unsigned>(rows.num_rows), static_cast<unsigned>(rows.num_heads)),
             dim3(kRowThreads), 0, stream, a, rows));
  const int first = rows.first_head / a.heads_per_set();
  const int last = (rows.first_head + rows.num_heads - 1) / a.heads_per_set();
  const auto blocks = static_cast<unsigned>((a.k_len + kLineThreads - 1) / kLineThreads);
  return launch("estimate: lines", add_lines_kernel,
                dim3(blocks, static_cast<unsigned>(last - first + 1)), dim3(kLineThreads), 0,
                stream, a, rows, static_cast<int>(first_set), first);
}

}  // namespace tsp::cuda
