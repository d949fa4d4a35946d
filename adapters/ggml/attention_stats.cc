// SPDX-License-Identifier: MIT
#include "adapters/ggml/attention_stats.h"

namespace tsp::ggml_adapter {

void LayerStats::add(const LayerStats& more) {
  named = named || more.named;
  served += more.served;
  served_rows += more.served_rows;
  sparse += more.sparse;
  few_keys += more.few_keys;
  few_rows += more.few_rows;
  kept_all += more.kept_all;
  keys += more.keys;
  kept += more.kept;
  pairs += more.pairs;
  dense_pairs += more.dense_pairs;
  seconds += more.seconds;
  for (size_t i = 0; i < refused.size(); ++i) refused[i] += more.refused[i];
}

std::string why_never_sparse(const LayerStats& layer, int32_t min_keys, int32_t min_rows) {
  if (!layer.named || layer.sparse > 0) return "";
  if (layer.kept_all > 0) return "it left nothing out";
  if (layer.few_rows > 0) {
    return "fewer than " + std::to_string(min_rows) + " query rows at once (min_rows)";
  }
  if (layer.few_keys > 0) return "fewer than " + std::to_string(min_keys) + " keys (min_keys)";
  for (size_t reason = 0; reason < layer.refused.size(); ++reason) {
    const auto refusal = static_cast<Refusal>(reason);
    if (layer.refused[reason] > 0 && refusal != Refusal::kShortChunk) return refusal_text(refusal);
  }
  if (layer.refused[static_cast<size_t>(Refusal::kShortChunk)] > 0) {
    return refusal_text(Refusal::kShortChunk);
  }
  return "it has no attention node";
}

}  // namespace tsp::ggml_adapter
