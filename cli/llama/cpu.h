// SPDX-License-Identifier: MIT
// Whether ggml, as this program was built with it, can run on this processor.
#pragma once

#include <string>

namespace tsp::cli {

/// What ggml was compiled to use and this processor does not have ("avx512f, avx512_vnni"); empty
/// where it can run.
std::string missing_for_ggml();

}  // namespace tsp::cli
