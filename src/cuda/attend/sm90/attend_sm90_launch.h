// SPDX-License-Identifier: MIT
// The instances of the warpgroup attention kernel.
#pragma once

#include "cuda/attend/sm90/attend_sm90.h"

namespace tsp::cuda {

/// One instance; launch_attend_sm90 chooses.
template <typename Type, int kHeadDim>
tsp_status_t launch_attend_sm90_kernel(const AttendSm90Params& params, cudaStream_t stream);

}  // namespace tsp::cuda
