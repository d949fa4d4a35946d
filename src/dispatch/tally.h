// SPDX-License-Identifier: MIT
// tsp_prefill_params_t::tally.
#pragma once

#include "core/layout.h"
#include "tokensparse/tokensparse.h"

namespace tsp {

[[nodiscard]] tsp_status_t check_tally(const tsp_prefill_params_t& p);

/// Adds what a host backend's call on `sets` (null: on everything) kept and computed.
void add_tally(const tsp_prefill_params_t& p, const tsp_index_sets_t* sets);

}  // namespace tsp
