// SPDX-License-Identifier: MIT
#include "adapters/ggml/layer_choice.h"

#include <algorithm>
#include <string_view>
#include <utility>

namespace tsp::ggml_adapter {
namespace {

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

/// Digits alone, below kMaxLayers; else -1.
int32_t number(std::string_view text) {
  if (text.empty()) return -1;
  int32_t value = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return -1;
    value = 10 * value + (c - '0');
    if (value >= kMaxLayers) return -1;
  }
  return value;
}

bool add_part(std::string_view part, std::vector<int32_t>& layers) {
  const size_t dash = part.find('-');
  const int32_t first = number(part.substr(0, dash));
  const int32_t last = dash == std::string_view::npos ? first : number(part.substr(dash + 1));
  if (first < 0 || last < first) return false;
  for (int32_t layer = first; layer <= last; ++layer) layers.push_back(layer);
  return true;
}

}  // namespace

LayerChoice LayerChoice::of(std::vector<int32_t> layers) {
  std::sort(layers.begin(), layers.end());
  layers.erase(std::unique(layers.begin(), layers.end()), layers.end());
  const Kind kind = layers.empty() ? Kind::kNone : Kind::kListed;
  return {kind, std::move(layers)};
}

bool LayerChoice::has(int32_t layer, int32_t num_layers) const {
  switch (kind) {
    case Kind::kMiddle:
      return layer > 0 && layer + 1 < num_layers;
    case Kind::kAll:
      return layer >= 0;
    case Kind::kNone:
      return false;
    case Kind::kListed:
      break;
  }
  return std::binary_search(listed.begin(), listed.end(), layer);
}

std::vector<int32_t> LayerChoice::layers(int32_t num_layers) const {
  std::vector<int32_t> layers;
  for (int32_t layer = 0; layer < num_layers; ++layer) {
    if (has(layer, num_layers)) layers.push_back(layer);
  }
  return layers;
}

std::string LayerChoice::text() const {
  if (kind != Kind::kListed) {
    return kind == Kind::kMiddle ? "middle" : kind == Kind::kAll ? "all" : "none";
  }
  std::string text;
  for (size_t at = 0; at < listed.size(); ++at) {
    const int32_t first = listed[at];
    while (at + 1 < listed.size() && listed[at + 1] == listed[at] + 1) ++at;
    text += (text.empty() ? "" : ",") + std::to_string(first);
    if (listed[at] > first) text += "-" + std::to_string(listed[at]);
  }
  return text;
}

std::string parse_layers(const std::string& text, LayerChoice& choice) {
  const std::string_view whole = trimmed(text);
  for (const auto& [word, kind] :
       {std::pair{"middle", LayerChoice::Kind::kMiddle}, std::pair{"all", LayerChoice::Kind::kAll},
        std::pair{"none", LayerChoice::Kind::kNone}}) {
    if (whole != word) continue;
    choice = {kind, {}};
    return "";
  }
  std::vector<int32_t> layers;
  for (size_t start = 0; start != std::string_view::npos;) {
    const size_t comma = whole.find(',', start);
    const size_t length = comma == std::string_view::npos ? comma : comma - start;
    if (!add_part(trimmed(whole.substr(start, length)), layers)) {
      return "must be middle, all, none, or layers like 1-22,25 without quotes, each below " +
             std::to_string(kMaxLayers) + ", got " + (text.empty() ? "nothing" : text);
    }
    start = comma == std::string_view::npos ? comma : comma + 1;
  }
  choice = LayerChoice::of(std::move(layers));
  return "";
}

}  // namespace tsp::ggml_adapter
