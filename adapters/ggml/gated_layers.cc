// SPDX-License-Identifier: MIT
#include "adapters/ggml/gated_layers.h"

namespace tsp::ggml_adapter {

bool is_swiglu(const ggml_tensor& node) {
  return node.op == GGML_OP_GLU && node.op_params[0] == GGML_GLU_OP_SWIGLU &&
         node.src[1] != nullptr && node.op_params[1] == 0;  // not swapped
}

void GatedLayers::saw(const ggml_tensor& node, bool served) {
  const bool learns = served && !known_.contains(node.src[0]->data);
  if (seen_.empty() && !learns) return;
  const auto read = [&](const ggml_tensor* tensor) {
    const auto at = seen_.find(tensor);
    if (at == seen_.end()) return;
    ++at->second.readers;
    at->second.read_by_product = served && node.src[1] == tensor;
  };
  for (const ggml_tensor* source : node.src) read(source);
  read(node.view_src);
  Seen seen;
  seen.readers = (node.flags & GGML_TENSOR_FLAG_OUTPUT) != 0 ? 1 : 0;  // whoever runs the graph
  if (learns) {
    seen.weight = node.src[0]->data;
    seen.input = node.src[1];
  } else if (is_swiglu(node)) {
    seen.gate = node.src[0];
    seen.up = node.src[1];
  } else {
    return;
  }
  seen_[&node] = seen;
}

void GatedLayers::end_graph() {
  for (const auto& [node, seen] : seen_) {
    if (seen.weight != nullptr) known_.insert(seen.weight);
    const auto gate = seen_.find(seen.gate), up = seen_.find(seen.up);
    if (gate == seen_.end() || up == seen_.end()) continue;
    if (seen.readers == 1 && seen.read_by_product && gate->second.readers == 1 &&
        up->second.readers == 1 && gate->second.weight != nullptr && up->second.weight != nullptr &&
        gate->second.input == up->second.input) {
      gated_.insert({gate->second.weight, up->second.weight});
    }
  }
  seen_.clear();
}

}  // namespace tsp::ggml_adapter
