// SPDX-License-Identifier: MIT
// Which products of a model make a gated layer: SwiGLU of two products of the same activations,
// each read by nothing else, itself read by one product and by nothing else. Learned from a graph
// as its nodes come, because ggml's public API does not tell who reads a tensor.
#pragma once

#include <map>
#include <set>

#include "ggml.h"

namespace tsp::ggml_adapter {

/// GGML_OP_GLU of two tensors, silu(src[0]) * src[1].
bool is_swiglu(const ggml_tensor& node);

class GatedLayers {
 public:
  /// What was seen of a graph that did not end is forgotten.
  void begin_graph() { seen_.clear(); }
  /// `served`: a product of a prompt's rows by a weight, as the server takes them.
  void saw(const ggml_tensor& node, bool served);
  /// Every node was seen.
  void end_graph();

  /// Whether products by this one's weight were seen to be one of the two.
  bool gated(const ggml_tensor& product) const { return gated_.contains(product.src[0]->data); }

 private:
  struct Seen {
    const void* weight = nullptr;                      // of a product: its data
    const ggml_tensor* input = nullptr;                // of a product
    const ggml_tensor *gate = nullptr, *up = nullptr;  // of a SwiGLU
    int readers = 0;
    bool read_by_product = false;
  };

  std::map<const ggml_tensor*, Seen> seen_;  // of this graph, where something is to be learned
  std::set<const void*> known_, gated_;      // data of weights
};

}  // namespace tsp::ggml_adapter
