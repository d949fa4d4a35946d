// SPDX-License-Identifier: MIT
// Causal attention on warpgroup products, bf16, head dim 128.
#include "cuda/attend/sm90/attend_sm90_kernel.cuh"

namespace tsp::cuda {
template tsp_status_t launch_attend_sm90_kernel<Bf16, 128>(const AttendSm90Params&, cudaStream_t);
}  // namespace tsp::cuda
