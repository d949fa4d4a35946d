// SPDX-License-Identifier: MIT
// What the score kernels of every chip share: what the first pass leaves for the second, how both
// end, and their launch.
#pragma once

#include "cuda/launch.h"
#include "cuda/ptx.cuh"
#include "cuda/score/score.h"

namespace tsp::cuda {

/// log2 of the softmax's denominator of one query, from its chunks in ascending order.
__device__ __forceinline__ float merge_stats(const ScoreArgs& a, int head, int row) {
  const float2* in = a.stats + int64_t{head} * a.plan.stat_chunks * a.plan.stat_rows + row;
  float m = kNoMax, l = 0.f;
#pragma unroll 16
  for (int chunk = 0; chunk < a.plan.stat_chunks; ++chunk) {
    const float2 part = in[chunk * a.plan.stat_rows];
    const float top = fmaxf(m, part.x);
    l = l * exp2_fast(m - top) + part.y * exp2_fast(part.x - top);
    m = top;
  }
  return m + log2f(l);
}

/// Maximum and sum of one query over the lanes that share it: those that differ in bits kFirst ..
/// kEnd / 2 of their number.
template <int kFirst, int kEnd>
__device__ __forceinline__ void merge_lanes(float& m, float& l) {
#pragma unroll
  for (int lanes = kFirst; lanes < kEnd; lanes *= 2) {
    const float other_m = __shfl_xor_sync(~0u, m, lanes);
    const float other_l = __shfl_xor_sync(~0u, l, lanes);
    const float top = fmaxf(m, other_m);
    l = l * exp2_fast(m - top) + other_l * exp2_fast(other_m - top);
    m = top;
  }
}

/// Weights of two keys over the four lanes that share them.
__device__ __forceinline__ void add_lanes(float& low, float& high) {
#pragma unroll
  for (int lanes = 1; lanes < 4; lanes *= 2) {
    low += __shfl_xor_sync(~0u, low, lanes);
    high += __shfl_xor_sync(~0u, high, lanes);
  }
}

/// Both passes: blocks of a chunk of keys, some heads and a KV head.
using ScoreKernel = void (*)(ScoreArgs);
[[nodiscard]] inline tsp_status_t launch_passes(ScoreKernel stats, ScoreKernel mass, int threads,
                                                size_t shared_bytes, const ScoreArgs& args,
                                                cudaStream_t stream) {
  const auto grid = [&](int32_t chunks) {
    return dim3(static_cast<unsigned>(chunks), static_cast<unsigned>(args.plan.head_blocks),
                static_cast<unsigned>(args.num_kv_heads));
  };
  const dim3 block(static_cast<unsigned>(threads));
  TSP_RETURN_IF_ERROR(
      launch("score_stats", stats, grid(args.plan.stat_chunks), block, shared_bytes, stream, args));
  return launch("score_mass", mass, grid(args.plan.mass_chunks), block, shared_bytes, stream, args);
}

}  // namespace tsp::cuda
