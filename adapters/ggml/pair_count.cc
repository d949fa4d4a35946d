// SPDX-License-Identifier: MIT
#include "adapters/ggml/pair_count.h"

namespace tsp::ggml_adapter {

double dense_pairs(int64_t rows, int64_t keys) {
  return static_cast<double>(rows) * (static_cast<double>(2 * keys - rows + 1) / 2);
}

}  // namespace tsp::ggml_adapter
