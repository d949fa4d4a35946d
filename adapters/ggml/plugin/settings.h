// SPDX-License-Identifier: MIT
// What the user asked of the plugin: TOKENSPARSE_<NAME> in the environment, else `name = value` in
// the config file, else the default. Names and rules are those of the program's options.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "adapters/ggml/attention_node.h"
#include "tokensparse/tokensparse.h"

namespace tsp::ggml_plugin {

struct Settings {
  tsp_prefill_params_t op;             // coverage 0: exact attention unless asked for more
  std::vector<int32_t> sparse_layers;  // ascending; those of the profile when none are listed
  int32_t profile_layers = 0;          // layers of the model that the profile was made for
  bool all_layers_sparse = false;      // sparse_layers = all
  int32_t threads = 0;                 // 0 = the host's number
  enum Linear : int32_t { kGgml, kOneDnn, kInt8 };
  int32_t linear = kGgml;                           // who multiplies for linear layers of prompts
  bool auto_precision = false;                      // attention in bf16 where linear layers are
  int32_t min_rows = 64;                            // nodes with fewer query rows are the host's
  int32_t min_keys = ggml_adapter::kMinSparseKeys;  // 0: chunks of any length are sparse
  size_t memory_bytes = size_t{1} << 30;
  bool disabled = false;
  bool verify = false;
  bool summary = true;
  std::vector<std::string> warnings;  // a sentence for each value that was not taken

  bool sparse() const { return op.coverage > 0 || op.keep > 0; }
};

/// Value of an environment variable, or null.
using Environment = std::function<const char*(const char* name)>;

Settings read_settings(const Environment& environment);

/// "4,6-9" as ascending layers; false when the text is something else.
bool parse_layers(const std::string& text, std::vector<int32_t>& layers);

/// What the plugin will do, in half a line.
std::string describe(const Settings& settings);

}  // namespace tsp::ggml_plugin
