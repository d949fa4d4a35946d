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
  std::string who = "auto";  // ggml, bf16, onednn, int8, auto
  int32_t keep_mb = -1;      // weights kept in the engine's form, at most; -1 = as memory allows
  int32_t threads = 1;

  std::unique_ptr<ggml_adapter::LinearServer> server;                 // null: ggml multiplies
  ggml_adapter::LinearKind kind = ggml_adapter::LinearKind::kOneDnn;  // of the server
  std::string description = "ggml";  // and why, where auto chose it
};

/// Declares --linear and --linear-keep.
void add_linear_options(CLI::App& app, LinearChoice& choice);

/// Opens what the choice is or comes to. Throws Failure where it was asked for by name and is
/// missing. TOKENSPARSE_ONEDNN_LIBRARY names another copy of oneDNN.
void open_linear(LinearChoice& choice, int32_t threads);

/// What the model's weights say about the choice. int8 is for weights that are quantised already: a
/// Failure where it was asked for by name and they are not. `auto` goes to bf16 for bf16 weights,
/// and leaves f16 and f32 ones to ggml, which multiplies f16 weights exactly enough that rounding
/// to bf16 moves the logits of a 0.5B model 5 times as far as flash attention on or off does; in
/// quantised models it is the other way round (docs/linear.md).
void fit_linear_to_weights(LinearChoice& choice, llama_ftype weights);

}  // namespace tsp::cli
