// SPDX-License-Identifier: MIT
// score, bf16, head dim 64.
#include "cuda/score/sm80/score_kernel.cuh"

namespace tsp::cuda {
template tsp_status_t launch_score<Bf16, 64>(const ScoreArgs&, cudaStream_t);
}  // namespace tsp::cuda
