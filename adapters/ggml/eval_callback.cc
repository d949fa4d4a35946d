// SPDX-License-Identifier: MIT
#include "adapters/ggml/eval_callback.h"

#include "ggml.h"

namespace tsp::ggml_adapter {

bool EvalCallback::call(ggml_tensor* node, bool ask, void* self) {
  auto& callback = *static_cast<EvalCallback*>(self);
  if (!ask) return callback.on_computed(*node);
  if (callback.linear_ != nullptr && !callback.linear_->saw(*node)) {
    callback.error_ = "a gated layer's products could not be computed";
  }
  if (!callback.wants(*node)) return false;
  node->flags &= ~GGML_TENSOR_FLAG_COMPUTE;
  return true;
}

// The scheduler computes everything up to a node that we say yes to, waits, and calls again with
// ask = false. Without the flag ggml passes the node over. Its memory is not ours before that: it
// may still hold an earlier tensor.
bool EvalCallback::wants(const ggml_tensor& node) {
  if (!error_.empty()) return true;  // to stop the scheduler there
  if (node.op == GGML_OP_FLASH_ATTN_EXT) return server_->check(node) == Refusal::kNone;
  return linear_ != nullptr && linear_->check(node) == LinearRefusal::kNone;
}

bool EvalCallback::on_computed(ggml_tensor& node) {
  node.flags |= GGML_TENSOR_FLAG_COMPUTE;  // the graph may be reused for the next chunk
  if (!error_.empty()) return false;
  if (node.op == GGML_OP_FLASH_ATTN_EXT) {
    if (server_->serve(node) == TSP_OK) return true;
    error_ = tsp_last_error();
  } else {
    if (linear_->serve(node)) return true;
    error_ = "oneDNN could not multiply by " + std::string(node.src[0]->name);
  }
  return false;  // the scheduler stops
}

}  // namespace tsp::ggml_adapter
