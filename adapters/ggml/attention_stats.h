// SPDX-License-Identifier: MIT
// What a server did with the attention nodes of a layer.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "adapters/ggml/attention_shape.h"

namespace tsp::ggml_adapter {

struct LayerStats {
  bool named = false;       // the setting names the layer: sparse where it can be
  int64_t served = 0;       // nodes
  int64_t served_rows = 0;  // query rows in them
  int64_t sparse = 0;       // of `served`, those that left tokens or blocks out ...
  int64_t few_keys = 0;     // ... those of a named layer that were exact for min_keys ...
  int64_t few_rows = 0;     // ... and for min_rows
  int64_t kept_all = 0;     // ... and those that chose, and left nothing out
  int64_t keys = 0;         // sum over served nodes of Tk ...
  int64_t kept = 0;         // ... and of the tokens that were kept
  double pairs = 0;         // query-key pairs that attention computed, mean over the heads ...
  double dense_pairs = 0;   // ... and those of dense attention
  double seconds = 0;       // in serve()
  std::array<int64_t, static_cast<size_t>(Refusal::kCount)> refused{};

  void add(const LayerStats& more);
  double kept_share() const {
    return keys > 0 ? static_cast<double>(kept) / static_cast<double>(keys) : 1;
  }
  double pairs_share() const { return dense_pairs > 0 ? pairs / dense_pairs : 1; }
};

/// Why a named layer never was sparse; empty where it was, or is not named.
std::string why_never_sparse(const LayerStats& layer, int32_t min_keys, int32_t min_rows);

}  // namespace tsp::ggml_adapter
