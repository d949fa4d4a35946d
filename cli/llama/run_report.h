// SPDX-License-Identifier: MIT
// What `run` found out, as a table for people and as JSON.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "adapters/ggml/setting.h"
#include "cli/llama/model_run.h"

namespace tsp::cli {

struct RunReport {
  std::string model;
  int64_t prompt_tokens = 0;
  std::string chat_template;  // as in ChatPrompt::used
  bool answer_shown = false;  // it was printed as it was decoded
  int32_t threads = 0;
  ggml_adapter::Setting setting;
  std::string draft;        // the model whose votes choose the tokens; empty: the layers' own
  std::string measured_on;  // the model whose measured setting was taken; empty: none
  std::string why_exact;    // why no layer was sparse, where the setting wants some
  std::string linear;       // who multiplies by the weights in ours
  std::string precision;    // of attention in ours: f32, bf16
  std::vector<RunResult> variants;
};

/// Prints an answer piece by piece, without the white space at its ends.
class AnswerPrinter {
 public:
  void print(const std::string& piece);

 private:
  bool started_ = false;
  std::string held_;  // white space that something may follow
};

void print_report(const RunReport& report, bool with_layers);
std::string to_json(const RunReport& report, bool with_layers);

}  // namespace tsp::cli
