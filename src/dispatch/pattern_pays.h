// SPDX-License-Identifier: MIT
// Whether prefill chooses blocks where the caller wants them only as far as they pay.
#pragma once

#include "core/context.h"

namespace tsp {

/// Of a call with TSP_WHEN_PAYS, else true. `estimated`: by what the lists hold, else by what they
/// are likely to. One sequence is enough: the lists of the others hold what they would.
bool pattern_pays(const tsp_context_t& ctx, const tsp_prefill_params_t& p,
                  const tsp_attend_params_t& attend, bool estimated);

}  // namespace tsp
