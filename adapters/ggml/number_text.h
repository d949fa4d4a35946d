// SPDX-License-Identifier: MIT
// Numbers as text, the same in every locale: a plugin's host may have set one that writes 0,1.
#pragma once

#include <string>

namespace tsp::ggml_adapter {

/// 0.1, 1024: as one would write it.
std::string number_text(double value);
/// False unless the whole text is a number.
bool parse_number(const std::string& text, double& value);

}  // namespace tsp::ggml_adapter
