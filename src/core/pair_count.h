// SPDX-License-Identifier: MIT
// How many query-key pairs attention computes: what sparsity saves, without a clock.
#pragma once

#include "core/layout.h"
#include "tokensparse/attend.h"

namespace tsp {

/// Of attend on a sequence, all query heads together. Sets and blocks in host memory.
int64_t computed_pairs(const tsp_attend_params_t& p, const Seq& seq);

}  // namespace tsp
