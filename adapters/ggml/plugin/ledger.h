// SPDX-License-Identifier: MIT
// What the plugin did in this process: its lines on stderr and the summary.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "adapters/ggml/attention_node.h"

namespace tsp::ggml_plugin {

/// One line on stderr, "tokensparse: ...".
void log_line(const std::string& text);

struct Totals {
  std::vector<ggml_adapter::LayerStats> layers;
  ggml_adapter::LayerStats no_layer;
  int64_t linear = 0;  // matrix products
  double linear_seconds = 0;
  int64_t verified = 0;
  double worst_error = 0;   // relative RMS against ggml's own result
  size_t memory_bytes = 0;  // most that one context held for workspaces
};

/// Totals of the whole process; contexts may run at the same time.
class Ledger {
 public:
  void add(const Totals& totals);
  void clear();
  Totals totals() const;

 private:
  mutable std::mutex mutex_;
  Totals totals_;
};

/// The sum over the layers.
ggml_adapter::LayerStats sum_of(const Totals& totals);

/// "22 sparse, keeping 31.0 % of their tokens, ...": empty where no node was sparse.
std::string sparsity_text(const std::vector<ggml_adapter::LayerStats>& layers);

/// "served 48 attention nodes ...; left to ggml: 4 with ...". `hint` follows where nothing was
/// served.
std::string summary_text(const Totals& totals, const ggml_adapter::Setting& setting,
                         const std::string& hint);

}  // namespace tsp::ggml_plugin
