// SPDX-License-Identifier: MIT
// `--linear`: who multiplies by the weights while a prompt is read.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "adapters/ggml/linear_node.h"
#include "llama.h"

namespace tsp::cli {

struct LinearChoice {
  std::string who = "auto";  // ggml, onednn, auto
  int32_t keep_mb = 0;       // weights kept dequantised, at most

  std::unique_ptr<ggml_adapter::LinearServer> server;  // null: ggml multiplies
  std::string description = "ggml";                    // and why, where auto chose it
};

/// Declares --linear and --linear-keep.
void add_linear_options(CLI::App& app, LinearChoice& choice);

/// Opens oneDNN where the choice is or comes to that. Throws Failure where it was asked for by name
/// and is missing. TOKENSPARSE_ONEDNN_LIBRARY names another copy of it.
void open_linear(LinearChoice& choice, int32_t threads);

/// Leaves linear layers to ggml where `auto` opened oneDNN and it would cost a model accuracy or
/// gain it nothing. ggml multiplies f16 weights exactly enough that rounding to bf16 moves the
/// logits of a 0.5B model 5 times as far as flash attention on or off does; in quantised models it
/// is the other way round (docs/linear.md).
void keep_exact_weights(LinearChoice& choice, llama_ftype weights);

}  // namespace tsp::cli
