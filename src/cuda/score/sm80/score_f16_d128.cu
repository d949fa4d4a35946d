// SPDX-License-Identifier: MIT
// score, f16, head dim 128.
#include "cuda/score/sm80/score_kernel.cuh"

namespace tsp::cuda {
template tsp_status_t launch_score<F16, 128>(const ScoreArgs&, cudaStream_t);
}  // namespace tsp::cuda
