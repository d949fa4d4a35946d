// SPDX-License-Identifier: MIT
// One prompt through one model under one setting: the answer, what an answer that was given costs,
// times, and what attention did.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "adapters/ggml/attention_node.h"
#include "adapters/ggml/linear_node.h"
#include "cli/llama/model.h"
#include "cli/llama/session.h"

namespace tsp::cli {

/// Fewer take longer: what is done once a chunk, choosing tokens above all, is done more often.
/// More at the beginning of a prompt lost answers (docs/whole_model.md).
constexpr int32_t kChunk = 2048, kLateChunk = 8192;

/// What is the same for every setting.
struct RunConditions {
  std::string isa;  // empty: the best one
  int32_t threads = 1;
  int32_t ubatch = 0;  // tokens at once; 0 = kChunk, and from kLateFrom on kLateChunk
  int32_t chunk() const { return ubatch > 0 ? ubatch : kChunk; }
  int32_t context = 0;  // tokens; 0 = what prompt and answer need
  ggml_adapter::LinearServer* linear = nullptr;
  bool progress = false;
  TextObserver on_answer;                          // see Session::answer()
  decltype(ggml_adapter::Options::choose) choose;  // of sparse layers; empty: their own vote
};

struct Prompt {
  std::vector<llama_token> tokens;
  std::vector<llama_token> expected;  // an answer whose loss is wanted; empty = none
  int32_t answer_tokens = 0;          // to write, at most
};

struct RunResult {
  std::string name;
  std::string answer;
  double loss = 0;         // mean over `expected` of -log p(token | prompt, tokens before it)
  int32_t right = 0;       // tokens of `expected` that were the likeliest
  double ttft_s = 0;       // from the first chunk's start to the first token of the answer
  double draft_s = 0;      // of it, reading by the draft whose votes choose the tokens
  double attention_s = 0;  // attention's part of it; of ours in layers that are left to ggml, none
  std::vector<double> attention_by_layer;
  double decode_tps = 0;   // tokens a second; 0 when no second token was wanted
  int64_t peak_bytes = 0;  // resident memory at its highest, weights included; 0 = not known
  std::vector<ggml_adapter::LayerStats> layers;  // empty for stock
  ggml_adapter::LinearStats linear;              // zero where ggml multiplied by the weights
  int64_t linear_bytes = 0;                      // memory for that

  /// Of the layers that the setting names and that were served; of all that were served.
  ggml_adapter::LayerStats named() const;
  ggml_adapter::LayerStats all() const;
  /// How much faster attention was than in `stock`, in the layers that are served here.
  double attention_gain(const RunResult& stock) const;
  /// Layers that left tokens out.
  std::vector<int32_t> sparse_layers() const;
};

/// Layers that the setting names and that never were sparse.
struct NeverSparse {
  std::string why;
  std::vector<int32_t> layers;
};
std::vector<NeverSparse> never_sparse(const RunResult& result,
                                      const ggml_adapter::Setting& setting);

ggml_adapter::ModelNumbers numbers_of(const Model& model);

class ModelRunner {
 public:
  ModelRunner(const Model& model, const RunConditions& conditions)
      : model_(model), conditions_(conditions) {}

  /// The setting as this model and machine run it: what is recommended for the model, where that
  /// was asked for. Throws Failure where it is for another model.
  ggml_adapter::Setting settled(ggml_adapter::Setting setting) const;
  /// Throws Failure where the model has no layer for us: after the first tokens of the prompt, not
  /// after minutes. It also brings the weights into memory, for each variant alike.
  void probe(const Prompt& prompt, const ggml_adapter::Setting& setting) const;
  /// llama.cpp as it comes: flash attention, chunks of 512.
  RunResult stock(const Prompt& prompt) const;
  /// Attention of ours.
  RunResult ours(const std::string& name, const Prompt& prompt,
                 const ggml_adapter::Setting& settled) const;

 private:
  int32_t context_tokens(const Prompt& prompt) const;
  RunResult run(const std::string& name, const Prompt& prompt, const SessionOptions& options,
                ggml_adapter::AttentionServer* server) const;

  const Model& model_;
  RunConditions conditions_;
};

}  // namespace tsp::cli
