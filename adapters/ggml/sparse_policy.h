// SPDX-License-Identifier: MIT
// When an attention node is sparse: the one place that decides, for program and plugin.
#pragma once

#include <cstdint>

#include "adapters/ggml/setting.h"

namespace tsp::ggml_adapter {

class SparsePolicy {
 public:
  enum class Verdict {
    kExact,    // no layer that may be sparse
    kFewKeys,  // Tk < min_keys
    kFewRows,  // Tq < min_rows
    kSparse,
  };

  /// `num_layers` of the model, 0 while it is not known: LayerChoice::kMiddle has no layers then.
  explicit SparsePolicy(const Setting& setting, int32_t num_layers = 0)
      : setting_(setting), num_layers_(num_layers) {}

  void set_num_layers(int32_t num_layers) { num_layers_ = num_layers; }
  /// Attends exactly from now on.
  void stop() { setting_ = exact(setting_); }

  /// Whether the setting names the layer; it is sparse only where it attends to the whole prompt.
  bool names(int32_t layer) const {
    return setting_.sparse() && setting_.layers.has(layer, num_layers_);
  }
  /// Of `rows` queries of a sequence over `keys`, all before the last of which they see.
  Verdict verdict(int32_t layer, int64_t rows, int64_t keys) const;

 private:
  Setting setting_;
  int32_t num_layers_;
};

}  // namespace tsp::ggml_adapter
