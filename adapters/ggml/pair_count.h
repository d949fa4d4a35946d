// SPDX-License-Identifier: MIT
// How many query-key pairs attention computes: what sparsity saves, without a clock.
#pragma once

#include <cstdint>

#include "tokensparse/tokensparse.h"

namespace tsp::ggml_adapter {

/// Of dense causal attention by the last `rows` of `keys` positions.
double dense_pairs(int64_t rows, int64_t keys);

/// The mean over the sets of what `params` with its chosen sets (params.selected, one sequence)
/// computed: kept queries see the kept keys before them; with TSP_DROPPED_LOCAL the others see
/// `sink` keys and a band.
double computed_pairs(const tsp_prefill_params_t& params, int64_t rows, int64_t keys);

}  // namespace tsp::ggml_adapter
