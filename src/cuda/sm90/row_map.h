// SPDX-License-Identifier: MIT
// What the copy engine has to know of rows before a kernel asks it for tiles of them
// (sm90/tma.cuh).
#pragma once

#include <cuda.h>

#include "cuda/views.h"

namespace tsp::cuda {

/// A map of rows as [head, column block of 64, row, 64]: boxes of `box_rows` rows by 64 elements in
/// the 128-byte swizzle. Rows from num_rows on read as zeros. `op` names the caller in an error.
[[nodiscard]] tsp_status_t make_row_map(const char* op, CUtensorMap* map, const Rows& rows,
                                        int32_t num_rows, int32_t num_heads, int32_t head_dim,
                                        int32_t box_rows);

}  // namespace tsp::cuda
