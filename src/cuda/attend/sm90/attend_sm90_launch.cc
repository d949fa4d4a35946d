// SPDX-License-Identifier: MIT
// Which instance of the warpgroup attention kernel.
#include "cuda/attend/sm90/attend_sm90_launch.h"

#include "core/error.h"

namespace tsp::cuda {

struct Bf16;
struct F16;

tsp_status_t launch_attend_sm90(const AttendSm90Params& params, cudaStream_t stream) {
  if (params.head_dim == 128 && params.bf16) {
    return launch_attend_sm90_kernel<Bf16, 128>(params, stream);
  }
#ifndef TSP_CUDA_MIN
  if (params.head_dim == 128) return launch_attend_sm90_kernel<F16, 128>(params, stream);
  if (params.head_dim == 64 && params.bf16) {
    return launch_attend_sm90_kernel<Bf16, 64>(params, stream);
  }
  if (params.head_dim == 64) return launch_attend_sm90_kernel<F16, 64>(params, stream);
#endif
  return fail(TSP_INTERNAL, "attend: no warpgroup kernel for head dim %d, %s", params.head_dim,
              params.bf16 ? "bf16" : "f16");
}

}  // namespace tsp::cuda
