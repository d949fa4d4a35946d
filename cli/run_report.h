// SPDX-License-Identifier: MIT
// What `run` found out, as a table for people and as JSON.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "adapters/ggml/attention_node.h"
#include "adapters/ggml/linear_node.h"

namespace tsp::cli {

/// One way of running the model over the prompt.
struct VariantResult {
  std::string name;  // stock, exact, sparse
  std::string answer;
  double ttft_s = 0;       // from the first chunk's start to the first token of the answer
  double attention_s = 0;  // attention's part of it
  double decode_tps = 0;   // tokens a second; 0 when no second token was wanted
  double kept = 1;         // tokens kept / tokens there, over the sparse layers and chunks
  int64_t peak_bytes = 0;  // resident memory at its highest, weights included; 0 = not known
  std::vector<ggml_adapter::LayerStats> layers;  // empty for stock
  ggml_adapter::LinearStats linear;              // zero where ggml multiplied by the weights
  int64_t linear_bytes = 0;                      // memory for that
};

struct RunReport {
  std::string model;
  int64_t prompt_tokens = 0;
  std::string chat_template;  // as in ChatPrompt::used
  int32_t threads = 0;
  std::vector<int32_t> sparse_layers;
  std::string why_exact;  // why there are none, where sparse layers were wanted
  std::string linear;     // who multiplies by the weights in ours
  std::string precision;  // of attention in ours: f32, bf16
  std::vector<VariantResult> variants;
};

void print_report(const RunReport& report, bool with_layers);
std::string to_json(const RunReport& report, bool with_layers);

}  // namespace tsp::cli
