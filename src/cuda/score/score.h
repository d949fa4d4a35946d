// SPDX-License-Identifier: MIT
// Launchers of the score kernels; one instance per dtype and head dim.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/score/score_config.h"
#include "cuda/views.h"

namespace tsp::cuda {

struct ScoreArgs {
  Rows q;         // [Tq, Hq, D]
  Rows k;         // [Tk, Hkv, D]
  float2* stats;  // [Hq, stat_chunks, stat_rows] running (max, sum) of each chunk, base 2
  float* mass;    // [Hq, P] a[h, t], before pooling
  Values scores;  // [P, Hq] out
  int32_t q_len;  // Tq
  int32_t k_len;  // Tk
  int32_t window_len;
  int32_t prefix_len;
  int32_t num_kv_heads;
  int32_t group;  // G
  int32_t pool;
  float scale_log2;  // scale * log2(e)
  ScorePlan plan;
};

/// The two passes over K.
template <typename Type, int kHeadDim>
tsp_status_t launch_score(const ScoreArgs& args, cudaStream_t stream);
/// The same on warpgroup products in one kernel whose blocks wait for each other, where plan.wide
/// says so (sm_90a).
template <typename Type, int kHeadDim>
tsp_status_t launch_wide_score(const ScoreArgs& args, cudaStream_t stream);
/// mass -> scores: average pooling.
tsp_status_t launch_pool(const ScoreArgs& args, cudaStream_t stream);

}  // namespace tsp::cuda
