// SPDX-License-Identifier: MIT
// Which of the nodes that a context computes belong to one prompt, and the lines that say so.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "adapters/ggml/plugin/ledger.h"

namespace tsp::ggml_plugin {

/// Of one context. A host does not say where a prompt ends: it ends with a chunk that does not
/// begin where the last one stopped, or with end(), when the host turns to decoding or is done.
/// Prompts that are read in the same batches are one here.
class PromptLog {
 public:
  /// `verbose`: 1 tells of every prompt, 2 of every chunk too.
  PromptLog(Ledger& ledger, int32_t verbose) : ledger_(ledger), verbose_(verbose) {}

  /// A node of that layer was served; `layers` say what that one did.
  void add(int32_t layer, const std::vector<ggml_adapter::LayerStats>& layers);
  void end();

 private:
  using Clock = std::chrono::steady_clock;
  void end_chunk();

  Ledger& ledger_;
  const int32_t verbose_;
  Prompt prompt_;
  Prompt chunk_;
  int32_t layer_ = -1;  // of the chunk, the last one
  Clock::time_point begun_, ended_, chunk_begun_, chunk_ended_;
};

}  // namespace tsp::ggml_plugin
