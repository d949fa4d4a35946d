// SPDX-License-Identifier: MIT
// tsp_prefill_params_t::tally.
#pragma once

#include "core/context.h"
#include "tokensparse/tokensparse.h"

namespace tsp {

[[nodiscard]] tsp_status_t check_tally(const tsp_context_t& ctx, const tsp_prefill_params_t& p);

/// Adds what a host backend's call kept and computed, which is what it attended to.
void add_tally(const tsp_prefill_params_t& p, const tsp_attend_params_t& attend);

}  // namespace tsp
