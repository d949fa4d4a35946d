// SPDX-License-Identifier: MIT
// What the user asked of the plugin: TOKENSPARSE_<NAME> in the environment, else `name = value` in
// the config file, else the default. Names and rules are those of a setting and of the program's
// options.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "adapters/ggml/attention_node.h"
#include "adapters/ggml/setting.h"

namespace tsp::ggml_plugin {

struct Settings {
  /// Exact, unless a name of a setting is there: then what they say, and the built-in setting where
  /// they say nothing.
  ggml_adapter::Setting setting = ggml_adapter::exact();
  int32_t threads = 0;  // 0 = the host's number
  enum Linear : int32_t { kGgml, kOneDnn, kInt8, kAutoLinear, kBf16 };
  int32_t linear = kGgml;                          // who multiplies for linear layers of prompts
  int32_t serve_rows = ggml_adapter::kServedRows;  // nodes with fewer query rows are the host's
  size_t memory_bytes = size_t{1} << 30;
  bool disabled = false;
  bool verify = false;
  bool summary = true;
  std::string summary_file;           // JSON; empty: none
  int32_t verbose = 0;                // 1: a line for every prompt, 2: for every chunk
  std::vector<std::string> warnings;  // a sentence for each value that was not taken
};

/// Value of an environment variable, or null.
using Environment = std::function<const char*(const char* name)>;

/// `names` are those of all variables there are: one that looks like ours and is not is warned of.
Settings read_settings(const Environment& environment, const std::vector<std::string>& names = {});
/// Of this process.
std::vector<std::string> environment_names();

/// What the plugin will do, in half a line.
std::string describe(const Settings& settings);

}  // namespace tsp::ggml_plugin
