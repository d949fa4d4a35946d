// SPDX-License-Identifier: MIT
// torch's scaled_dot_product_attention, in a process of its own.
#pragma once

#include <string>

#include "bench/shape.h"
#include "bench/timing.h"

namespace tsp::bench {

/// Runs bench/peers/torch_sdpa.py (compiled in) with the Python that TOKENSPARSE_PEER_PYTHON names,
/// for q_tokens = tokens. Returns its JSON object, or an empty string and one sentence in `why`.
std::string run_torch_peer(const Shape& shape, bool bf16, int threads, const Budget& budget,
                           std::string* why);

}  // namespace tsp::bench
