// SPDX-License-Identifier: MIT
// How many query-key pairs dense attention computes, to set beside those that prefill counts.
#pragma once

#include <cstdint>

namespace tsp::ggml_adapter {

/// Of dense causal attention by the last `rows` of `keys` positions.
double dense_pairs(int64_t rows, int64_t keys);

}  // namespace tsp::ggml_adapter
