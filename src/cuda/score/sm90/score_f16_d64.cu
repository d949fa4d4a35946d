// SPDX-License-Identifier: MIT
// score on warpgroup products, f16, head dim 64.
#include "cuda/score/sm90/score_kernel.cuh"

namespace tsp::cuda {
template tsp_status_t launch_wide_score<F16, 64>(const ScoreArgs&, cudaStream_t);
}  // namespace tsp::cuda
