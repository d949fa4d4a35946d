// SPDX-License-Identifier: MIT
// The rules of block patterns, which estimate and prefill share.
#pragma once

#include "tokensparse/types.h"

namespace tsp {

/// Of a kind that is not none. `num_sets`: of the blocks, as pattern.share says.
[[nodiscard]] tsp_status_t check_pattern(const tsp_pattern_t& pattern, int32_t num_sets);

}  // namespace tsp
