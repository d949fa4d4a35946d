// SPDX-License-Identifier: MIT
// Which layers of a model may be sparse.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tsp::ggml_adapter {

inline constexpr int32_t kMaxLayers = 4096;

struct LayerChoice {
  enum class Kind {
    kMiddle,  // every layer that attends to the whole prompt, but the model's first and last
    kAll,
    kNone,
    kListed,
  };
  Kind kind = Kind::kMiddle;
  std::vector<int32_t> listed;  // ascending, each once

  /// An empty list is kNone.
  static LayerChoice of(std::vector<int32_t> layers);

  /// Whether a layer of a model of `num_layers` may be sparse, going by its number.
  bool has(int32_t layer, int32_t num_layers) const;
  /// The layers of such a model.
  std::vector<int32_t> layers(int32_t num_layers) const;
  /// The highest layer that is named; -1 where none is.
  int32_t highest() const { return kind == Kind::kListed ? listed.back() : -1; }
  /// "middle", "1-22,25": what parse_layers() takes.
  std::string text() const;
};

/// Takes "middle", "all", "none", or numbers and ranges below kMaxLayers, "1-22,25", with spaces
/// around commas as one likes. Empty, or what is wrong: "must be ..., got ...".
std::string parse_layers(const std::string& text, LayerChoice& choice);

}  // namespace tsp::ggml_adapter
