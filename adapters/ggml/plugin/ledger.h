// SPDX-License-Identifier: MIT
// What the plugin did in this process: its lines on stderr and the summary.
#pragma once

#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "adapters/ggml/attention_node.h"

namespace tsp::ggml_plugin {

/// One line on stderr, "tokensparse: ...".
void log_line(const std::string& text);

/// A prompt that was read, or several in the same batches; also a chunk of one.
struct Prompt {
  int64_t chunks = 0;
  int64_t rows = 0;
  int64_t keys = 0;    // of its last chunk
  double seconds = 0;  // from its first attention node to the end of the last one
  std::vector<ggml_adapter::LayerStats> layers;
};

/// "2048 query rows over 4096 keys: 24 attention nodes in 0.512 s, exact".
std::string prompt_text(const Prompt& prompt);

struct Totals {
  std::vector<ggml_adapter::LayerStats> layers;
  ggml_adapter::LayerStats no_layer;
  int64_t linear = 0;  // matrix products
  double linear_seconds = 0;
  int64_t verified = 0;
  double worst_error = 0;   // relative RMS against ggml's own result
  size_t memory_bytes = 0;  // most that one context held for workspaces
  int64_t prompts = 0;
  Prompt last_prompt;
};

/// Totals of the whole process; contexts may run at the same time.
class Ledger {
 public:
  void add(const Totals& totals);
  /// Counts it, and calls what `on_prompt` is.
  void end_prompt(const Prompt& prompt);
  void clear();
  Totals totals() const;

  /// Set before contexts are made; called on their threads.
  std::function<void()> on_prompt;

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
