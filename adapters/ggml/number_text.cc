// SPDX-License-Identifier: MIT
#include "adapters/ggml/number_text.h"

#include <charconv>
#include <cmath>

namespace tsp::ggml_adapter {

std::string number_text(double value) {
  char text[32];
  const bool whole = std::fabs(value) < 1e15 && value == std::floor(value);
  const auto format = whole ? std::chars_format::fixed : std::chars_format::general;
  return {text, std::to_chars(text, text + sizeof text, value, format, whole ? 0 : 7).ptr};
}

bool parse_number(const std::string& text, double& value) {
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  return error == std::errc() && stop == end;
}

}  // namespace tsp::ggml_adapter
