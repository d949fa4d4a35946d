// SPDX-License-Identifier: MIT
// Serves attention, and linear layers if asked to, inside llama_decode() through
// llama_context_params.cb_eval: public API only.
//   cparams.cb_eval = EvalCallback::call;  cparams.cb_eval_user_data = &callback;
#pragma once

#include <string>

#include "adapters/ggml/attention_node.h"
#include "adapters/ggml/linear_node.h"

namespace tsp::ggml_adapter {

class EvalCallback {
 public:
  /// Without `linear` matrix products are ggml's.
  explicit EvalCallback(AttentionServer* server, LinearServer* linear = nullptr)
      : server_(server), linear_(linear) {}

  static bool call(ggml_tensor* node, bool ask, void* self);

  /// Empty, or why a node that was taken could not be computed: the results of the llama_decode()
  /// that this happened in are void.
  const std::string& error() const { return error_; }

 private:
  bool wants(const ggml_tensor& node);
  bool on_computed(ggml_tensor& node);

  AttentionServer* server_;
  LinearServer* linear_;
  std::string error_;
};

}  // namespace tsp::ggml_adapter
