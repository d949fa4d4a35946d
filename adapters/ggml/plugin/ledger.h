// SPDX-License-Identifier: MIT
// What the plugin did in this process: its lines on stderr and the summary.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <string>

#include "adapters/ggml/attention_node.h"

namespace tsp::ggml_plugin {

/// One line on stderr, "tokensparse: ...".
void log_line(const std::string& text);

struct Totals {
  int64_t served = 0;     // nodes
  int64_t sparse = 0;     // of them, those that left tokens out
  int64_t too_short = 0;  // of sparse layers, those too short to choose
  int64_t rows = 0;       // query rows in them
  int64_t keys = 0;
  int64_t kept = 0;
  double seconds = 0;  // in our attention
  int64_t linear = 0;  // matrix products
  double linear_seconds = 0;
  std::array<int64_t, static_cast<size_t>(ggml_adapter::Refusal::kCount)> by_ggml{};
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

/// "served 48 attention nodes ...; left to ggml: 4 with ...".
std::string summary_text(const Totals& totals);

}  // namespace tsp::ggml_plugin
