// SPDX-License-Identifier: MIT
// attend on left-out rows, bf16, head dim 128.
#include "cuda/attend/sm80/leftout_kernel.cuh"

namespace tsp::cuda {
template tsp_status_t launch_left_out<Bf16, 128>(const LeftOutArgs&, cudaStream_t);
}  // namespace tsp::cuda
