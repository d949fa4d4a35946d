// SPDX-License-Identifier: MIT
// One context of a model: reads a prompt in chunks, then continues it greedily.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "adapters/ggml/eval_callback.h"
#include "cli/llama/model.h"
#include "cli/llama/node_timer.h"
#include "cli/llama/progress.h"

namespace tsp::cli {

struct SessionOptions {
  int32_t context = 0;      // tokens of prompt and answer
  int32_t ubatch = 512;     // tokens of the prompt that go through the layers at once
  int32_t late_ubatch = 0;  // from the kLateFrom-th token on; 0: no other number
  int32_t threads = 1;
  int32_t outputs = 1;  // tokens of an answer whose loss is wanted that go through at once
  ggml_adapter::LinearServer* linear = nullptr;  // the prompt's matrix products; null = ggml's
};

/// Where chunks of a prompt may grow.
constexpr int32_t kLateFrom = 16384;

struct AnswerLoss {
  double mean = 0;    // of -log p(token | everything before it)
  int32_t right = 0;  // tokens that were the likeliest
};

/// What an eval callback looks at while the prompt is read, for the profile.
using NodeObserver = std::function<bool(ggml_tensor* node, bool ask)>;

using TextObserver = std::function<void(const std::string& piece)>;

class Session {
 public:
  /// With a server our attention serves the prompt; without, ggml's does, and is timed. Throws
  /// Failure. `observer` sees every node first and answers for those it wants (ask and computed).
  Session(const Model& model, const SessionOptions& options, ggml_adapter::AttentionServer* server,
          NodeObserver observer = {});
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  /// Reads the prompt and returns the token that follows it. Throws Failure, also on Ctrl-C.
  llama_token read_prompt(const std::vector<llama_token>& prompt, Progress& progress);
  /// After read_prompt(): how likely the model finds this answer, token after token. The context is
  /// then what it was before. Throws Failure, also where the model cannot go back.
  AnswerLoss loss_of(const std::vector<llama_token>& answer);
  /// Up to `limit` tokens of answer from `first` on. Stops at the model's end marker. `on_text`
  /// gets each piece as it is decoded.
  std::string answer(llama_token first, int32_t limit, const TextObserver& on_text = {});

  double read_seconds() const { return read_seconds_; }            // time to first token
  double attention_seconds() const;                                // attention's part of it
  std::vector<double> attention_by_layer() const;                  // the same; a layer each
  double decode_per_second() const { return decode_per_second_; }  // tokens; 0 when none was

 private:
  int32_t chunk_at(int32_t position) const;
  static bool on_node(ggml_tensor* node, bool ask, void* self);
  /// Logits are kept of the last `outputs` tokens.
  void decode(const llama_token* tokens, int32_t count, int32_t outputs);
  llama_token likeliest() const;

  const Model& model_;
  SessionOptions options_;
  ggml_adapter::AttentionServer* server_;
  NodeObserver observer_;
  ggml_adapter::EvalCallback callback_;
  std::unique_ptr<NodeTimer> timer_;
  struct Free {
    void operator()(llama_context* ctx) const { llama_free(ctx); }
  };
  std::unique_ptr<llama_context, Free> ctx_;
  int32_t position_ = 0;
  double read_seconds_ = 0;
  double decode_per_second_ = 0;
};

}  // namespace tsp::cli
