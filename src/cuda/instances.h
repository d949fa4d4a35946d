// SPDX-License-Identifier: MIT
// The instance table: from dtype and head dim at run time to the kernels compiled for them.
#pragma once

#include "cuda/attend/attend_args.h"
#include "cuda/attend/leftout_args.h"
#include "cuda/score/score.h"

namespace tsp::cuda {

[[nodiscard]] tsp_status_t launch_attend_any(int32_t dtype, int32_t head_dim,
                                             const AttendArgs& args, cudaStream_t stream);
/// `wide`: on warpgroup products.
[[nodiscard]] tsp_status_t launch_left_out_any(int32_t dtype, int32_t head_dim, bool wide,
                                               const LeftOutArgs& args, cudaStream_t stream);
[[nodiscard]] tsp_status_t launch_score_any(int32_t dtype, int32_t head_dim, const ScoreArgs& args,
                                            cudaStream_t stream);

}  // namespace tsp::cuda
