// SPDX-License-Identifier: MIT
#include "adapters/ggml/plugin/ledger.h"

#include <algorithm>
#include <cstdio>

namespace tsp::ggml_plugin {
namespace {

std::string format(const char* pattern, double value) {
  char text[64];
  std::snprintf(text, sizeof text, pattern, value);
  return text;
}

}  // namespace

void log_line(const std::string& text) {
  // One write, so that lines of several threads do not mix.
  const std::string line = "tokensparse: " + text + "\n";
  std::fwrite(line.data(), 1, line.size(), stderr);
}

void Ledger::add(const Totals& more) {
  const std::lock_guard lock(mutex_);
  totals_.served += more.served;
  totals_.sparse += more.sparse;
  totals_.too_short += more.too_short;
  totals_.rows += more.rows;
  totals_.keys += more.keys;
  totals_.kept += more.kept;
  totals_.seconds += more.seconds;
  totals_.linear += more.linear;
  totals_.linear_seconds += more.linear_seconds;
  for (size_t i = 0; i < totals_.by_ggml.size(); ++i) totals_.by_ggml[i] += more.by_ggml[i];
  totals_.verified += more.verified;
  totals_.worst_error = std::max(totals_.worst_error, more.worst_error);
  totals_.memory_bytes = std::max(totals_.memory_bytes, more.memory_bytes);
}

void Ledger::clear() {
  const std::lock_guard lock(mutex_);
  totals_ = {};
}

Totals Ledger::totals() const {
  const std::lock_guard lock(mutex_);
  return totals_;
}

std::string summary_text(const Totals& totals) {
  std::string text = "served " + std::to_string(totals.served) + " attention nodes, " +
                     std::to_string(totals.rows) + " query rows, in " +
                     format("%.3f", totals.seconds) + " s";
  if (totals.sparse > 0) {
    const double share = static_cast<double>(totals.kept) / static_cast<double>(totals.keys);
    text += ", " + std::to_string(totals.sparse) + " of them sparse, " +
            format("%.1f", 100 * share) + " % of all tokens kept";
  }
  if (totals.too_short > 0) {
    text += ", " + std::to_string(totals.too_short) +
            " of sparse layers exact: too short to gain (min_keys)";
  }
  text += ", " + format("%.1f", static_cast<double>(totals.memory_bytes) / (1 << 20)) +
          " MiB of workspace";
  if (totals.verified > 0) {
    text += "; " + std::to_string(totals.verified) + " compared with ggml, largest difference " +
            format("%.2g", totals.worst_error);
  }
  if (totals.linear > 0) {
    text += "; " + std::to_string(totals.linear) + " linear layers in " +
            format("%.3f", totals.linear_seconds) + " s";
  }
  std::string left;
  for (size_t i = 0; i < totals.by_ggml.size(); ++i) {
    if (totals.by_ggml[i] == 0) continue;
    left += (left.empty() ? "" : ", ") + std::to_string(totals.by_ggml[i]) + " for " +
            ggml_adapter::refusal_text(static_cast<ggml_adapter::Refusal>(i));
  }
  return text + "; left to ggml: " + (left.empty() ? "none of prefill size" : left);
}

}  // namespace tsp::ggml_plugin
