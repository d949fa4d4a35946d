// SPDX-License-Identifier: MIT
// `--linear`: who multiplies by the weights while a prompt is read.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "adapters/ggml/linear_node.h"

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

}  // namespace tsp::cli
