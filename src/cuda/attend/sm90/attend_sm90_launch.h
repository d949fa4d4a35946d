// SPDX-License-Identifier: MIT
// Host parts of the warpgroup attention kernel.
#pragma once

#include <cuda.h>

#include "cuda/attend/sm90/attend_sm90.h"

namespace tsp::cuda {

/// A map of rows as [head, column block of 64, row, 64]: boxes of `box_rows` rows by 64 elements in
/// the 128-byte swizzle. Rows from num_rows on read as zeros.
[[nodiscard]] tsp_status_t make_row_map(CUtensorMap* map, const Rows& rows, int32_t num_rows,
                                        int32_t num_heads, int32_t head_dim, int32_t box_rows);

/// One instance; launch_attend_sm90 chooses.
template <typename Type, int kHeadDim>
tsp_status_t launch_attend_sm90_kernel(const AttendSm90Params& params, cudaStream_t stream);

}  // namespace tsp::cuda
