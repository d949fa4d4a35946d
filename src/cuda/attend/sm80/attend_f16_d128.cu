// SPDX-License-Identifier: MIT
// attend, f16, head dim 128.
#include "cuda/attend/sm80/attend_kernel.cuh"

namespace tsp::cuda {
template tsp_status_t launch_attend<F16, 128>(const AttendArgs&, cudaStream_t);
}  // namespace tsp::cuda
