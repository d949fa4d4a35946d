// SPDX-License-Identifier: MIT
// STS (arXiv 2605.15508): a small model reads the prompt first, exactly, and the last queries of
// its heads choose the tokens that the target's sparse layers attend to.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cli/llama/head_map.h"
#include "cli/llama/model.h"
#include "cli/llama/model_run.h"
#include "tokensparse/tokensparse.hpp"

namespace tsp::cli {

/// Throws Failure where the two read a text as different tokens.
void check_same_tokens(const Model& target, const Model& draft);

class DraftVotes {
 public:
  /// `setting` is the target's: its window and pool are the vote's. Throws Failure.
  DraftVotes(HeadMap map, const ggml_adapter::Setting& setting, const RunConditions& conditions);

  /// Lets the draft read the prompt; `linear` multiplies by its weights, null = ggml. Throws
  /// Failure where a layer of it that is asked is not served.
  void read(const Model& draft, const std::vector<llama_token>& prompt,
            ggml_adapter::LinearServer* linear);
  /// An Options::choose for a target that reads the same prompt: of the tokens before a chunk's
  /// last queries those that the votes cover. Exact where the chunk has fewer queries than voted.
  tsp_status_t choose(int32_t layer, int32_t rows, int32_t keys, tsp_index_sets_t& sets);

  /// That read() took.
  double seconds() const { return seconds_; }

 private:
  int32_t chunk_of(int32_t length) const;

  HeadMap map_;
  tsp_prefill_params_t op_;
  RunConditions conditions_;
  tokensparse::Context ctx_;
  std::vector<std::vector<float>>
      scores_;          // by layer of the draft [head][tokens before the voters]
  int64_t scored_ = 0;  // these tokens
  double seconds_ = 0;
};

}  // namespace tsp::cli
