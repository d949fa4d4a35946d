// SPDX-License-Identifier: MIT
// attend on left-out rows, warpgroup products, f16, head dim 64.
#include "cuda/attend/sm90/leftout_kernel.cuh"

namespace tsp::cuda {
template tsp_status_t launch_wide_left_out<F16, 64>(const LeftOutArgs&, cudaStream_t);
}  // namespace tsp::cuda
