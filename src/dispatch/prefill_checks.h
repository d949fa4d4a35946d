// SPDX-License-Identifier: MIT
// What prefill refuses, and the defaults that it fills in.
#pragma once

#include "dispatch/checks.h"

namespace tsp {

inline bool has_pattern(const tsp_prefill_params_t& p) {
  return p.pattern.kind != TSP_PATTERN_NONE;
}

tsp_status_t normalise(const tsp_context_t* ctx, const tsp_prefill_params_t* in, bool data,
                       tsp_prefill_params_t& p, SingleBatch& single);

}  // namespace tsp
