// SPDX-License-Identifier: MIT
// The cuDNN problems that attend poses.
#pragma once

#include "cuda/attend_op.h"

namespace tsp::cuda {

/// `count` units of compact copies.
AttendShape group_shape(const AttendLayout& layout, const tsp_attend_params_t& params,
                        int32_t count);
/// The caller's own tensors, but for a copy of V.
AttendShape direct_shape(const AttendLayout& layout, const tsp_attend_params_t& params,
                         const Seq& seq);

}  // namespace tsp::cuda
