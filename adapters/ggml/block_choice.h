// SPDX-License-Identifier: MIT
// Which block pattern a setting names, and its parameters: on a command line and in a variable
// "xattention,threshold=0.8", in a setting file that or {"pattern": "xattention", "threshold":
// 0.8}. Parameters have the names that the methods' authors and OpenVINO give them.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tokensparse/tokensparse.h"

namespace tsp::ggml_adapter {

/// "none", "xattention", ...: by tsp_pattern_kind_t.
const std::vector<std::string>& pattern_names();

struct BlockParameter {
  std::string name;
  std::string value;             // as it is shown
  std::optional<double> number;  // that the value is
};

/// Empty and made; or the parameter, the rule that it breaks and its value: "threshold must be a
/// number above 0 and at most 1, got 2". `pattern` is then as it was.
std::string make_blocks(const std::string& name, const std::vector<BlockParameter>& parameters,
                        tsp_pattern_t& pattern);

/// The same from text, "none" or "xattention,threshold=0.8,stride=16".
std::string parse_blocks(const std::string& text, tsp_pattern_t& pattern);

/// The parameters that are not the method's own.
std::vector<BlockParameter> changed_parameters(const tsp_pattern_t& pattern);
/// What parse_blocks() takes.
std::string blocks_text(const tsp_pattern_t& pattern);

}  // namespace tsp::ggml_adapter
