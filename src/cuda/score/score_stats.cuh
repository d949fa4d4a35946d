// SPDX-License-Identifier: MIT
// What the first pass of score leaves for the second.
#pragma once

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

}  // namespace tsp::cuda
