// SPDX-License-Identifier: MIT
#include "adapters/ggml/sparse_policy.h"

namespace tsp::ggml_adapter {

SparsePolicy::Verdict SparsePolicy::verdict(int32_t layer, int64_t rows, int64_t keys) const {
  if (!names(layer)) return Verdict::kExact;
  if (keys < setting_.min_keys) return Verdict::kFewKeys;
  if (rows < setting_.min_rows) return Verdict::kFewRows;
  return Verdict::kSparse;
}

}  // namespace tsp::ggml_adapter
