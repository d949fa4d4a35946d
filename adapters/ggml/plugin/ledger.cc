// SPDX-License-Identifier: MIT
#include "adapters/ggml/plugin/ledger.h"

#include <algorithm>
#include <cstdio>
#include <map>

namespace tsp::ggml_plugin {

using ggml_adapter::LayerChoice;
using ggml_adapter::LayerStats;
using ggml_adapter::Refusal;

namespace {

std::string format(const char* pattern, double value) {
  char text[64];
  std::snprintf(text, sizeof text, pattern, value);
  return text;
}

/// "; layers 1-4 never sparse: a mask of another kind (...)".
std::string never_sparse_text(const Totals& totals, const ggml_adapter::Setting& setting) {
  std::map<std::string, std::vector<int32_t>> reasons;
  for (size_t layer = 0; layer < totals.layers.size(); ++layer) {
    const std::string why =
        why_never_sparse(totals.layers[layer], setting.min_keys, setting.min_rows);
    if (!why.empty()) reasons[why].push_back(static_cast<int32_t>(layer));
  }
  std::string text;
  for (const auto& [why, layers] : reasons) {
    text += "; layers " + LayerChoice::of(layers).text() + " never sparse: " + why;
  }
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
  totals_.layers.resize(std::max(totals_.layers.size(), more.layers.size()));
  for (size_t i = 0; i < more.layers.size(); ++i) totals_.layers[i].add(more.layers[i]);
  totals_.no_layer.add(more.no_layer);
  totals_.linear += more.linear;
  totals_.linear_seconds += more.linear_seconds;
  totals_.verified += more.verified;
  totals_.worst_error = std::max(totals_.worst_error, more.worst_error);
  totals_.memory_bytes = std::max(totals_.memory_bytes, more.memory_bytes);
}

void Ledger::end_prompt(const Prompt& prompt) {
  {
    const std::lock_guard lock(mutex_);
    ++totals_.prompts;
    totals_.last_prompt = prompt;
  }
  if (on_prompt) on_prompt();
}

void Ledger::clear() {
  const std::lock_guard lock(mutex_);
  totals_ = {};
}

Totals Ledger::totals() const {
  const std::lock_guard lock(mutex_);
  return totals_;
}

LayerStats sum_of(const Totals& totals) {
  LayerStats sum = totals.no_layer;
  for (const LayerStats& layer : totals.layers) sum.add(layer);
  return sum;
}

std::string sparsity_text(const std::vector<LayerStats>& layers) {
  LayerStats all, named;
  for (const LayerStats& layer : layers) {
    all.add(layer);
    if (layer.named) named.add(layer);
  }
  if (named.sparse == 0) return "";
  return std::to_string(named.sparse) + " of them sparse, " +
         format("%.1f %% of the tokens of the sparse layers kept", 100 * named.kept_share()) +
         format(" (%.1f %% of all", 100 * all.kept_share()) +
         format("; %.1f %% of the query-key pairs of all computed)", 100 * all.pairs_share());
}

std::string prompt_text(const Prompt& prompt) {
  LayerStats sum;
  for (const LayerStats& layer : prompt.layers) sum.add(layer);
  std::string text = std::to_string(prompt.rows) + " query rows";
  if (prompt.chunks > 1) text += " in " + std::to_string(prompt.chunks) + " chunks";
  text += " over " + std::to_string(prompt.keys) + " keys";
  if (prompt.seconds > 0) text += " in " + format("%.3f", prompt.seconds) + " s";
  text += ": " + std::to_string(sum.served) + " attention nodes in " + format("%.3f", sum.seconds) +
          " s, ";
  const std::string sparsity = sparsity_text(prompt.layers);
  return text + (sparsity.empty() ? "exact" : sparsity);
}

std::string summary_text(const Totals& totals, const ggml_adapter::Setting& setting,
                         const std::string& hint) {
  const LayerStats sum = sum_of(totals);
  std::string text = "served " + std::to_string(sum.served) + " attention nodes, " +
                     std::to_string(sum.served_rows) + " query rows, in " +
                     format("%.3f", sum.seconds) + " s";
  const std::string sparsity = sparsity_text(totals.layers);
  if (!sparsity.empty()) text += ", " + sparsity;
  if (sum.few_keys > 0) {
    text += ", " + std::to_string(sum.few_keys) + " of sparse layers exact: fewer than " +
            std::to_string(setting.min_keys) + " keys (min_keys)";
  }
  if (sum.few_rows > 0) {
    text += ", " + std::to_string(sum.few_rows) + " of sparse layers exact: fewer than " +
            std::to_string(setting.min_rows) +
            " query rows at once (min_rows; a larger -ub gives more)";
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
  text += never_sparse_text(totals, setting);
  std::string left;
  for (size_t i = 0; i < sum.refused.size(); ++i) {
    if (sum.refused[i] == 0) continue;
    left += (left.empty() ? "" : ", ") + std::to_string(sum.refused[i]) + " for " +
            ggml_adapter::refusal_text(static_cast<Refusal>(i));
  }
  if (sum.served == 0 && left.empty() && !hint.empty()) return text + "; " + hint;
  return text + "; left to ggml: " + (left.empty() ? "none of prefill size" : left);
}

}  // namespace tsp::ggml_plugin
