// SPDX-License-Identifier: MIT
// attend, bf16, head dim 128.
#include "cuda/attend/sm80/attend_kernel.cuh"

namespace tsp::cuda {
template tsp_status_t launch_attend<Bf16, 128>(const AttendArgs&, cudaStream_t);
}  // namespace tsp::cuda
