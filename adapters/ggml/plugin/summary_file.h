// SPDX-License-Identifier: MIT
// The summary as JSON in a file, for programs that watch a server.
#pragma once

#include <string>

#include "adapters/ggml/plugin/ledger.h"

namespace tsp::ggml_plugin {

/// What does not change while the host runs.
struct SummaryHead {
  std::string ggml;      // its version
  std::string isa;       // our CPU path
  std::string settings;  // as describe() says them
};

/// {"format": "tokensparse summary 1", ...}.
std::string summary_json(const SummaryHead& head, const Totals& totals,
                         const ggml_adapter::Setting& setting, const std::string& hint);

/// Replaces the file as a whole, so that a reader never sees a part. Empty, or why not.
std::string write_whole_file(const std::string& path, const std::string& text);

}  // namespace tsp::ggml_plugin
