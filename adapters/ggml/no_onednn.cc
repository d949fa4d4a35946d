// SPDX-License-Identifier: MIT
#include "adapters/ggml/onednn.h"

namespace tsp::ggml_adapter {

std::unique_ptr<OneDnn> OneDnn::open(const std::string&, int32_t, std::string& why) {
  why = "this build is without oneDNN (configure with TOKENSPARSE_ONEDNN=ON)";
  return nullptr;
}

}  // namespace tsp::ggml_adapter
