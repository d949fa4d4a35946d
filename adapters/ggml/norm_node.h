// SPDX-License-Identifier: MIT
// Serves GGML_OP_RMS_NORM of a prompt's rows together with the GGML_OP_MUL that brings its factors
// in: ggml's loop adds one value after the other, at a fraction of the rate of memory.
#pragma once

#include <cstdint>

#include "adapters/ggml/linear_engine.h"
#include "adapters/ggml/parallel_items.h"
#include "ggml.h"

namespace tsp::ggml_adapter {

class NormServer {
 public:
  /// `normalise` is null where norms are ggml's.
  NormServer(Normalise normalise, int32_t min_rows) : normalise_(normalise), min_rows_(min_rows) {}

  /// Every node of a graph, in its order, before its check(). A norm waits for the next one, which
  /// serve() computes with it where it is its product by factors and overwrites it, so that nothing
  /// else reads of it; else the norm is computed here.
  void saw(const ggml_tensor& node, const Threads& threads);
  bool check(const ggml_tensor& node) const;
  void serve(const ggml_tensor& node, const Threads& threads);

  void begin_graph() { waiting_ = nullptr; }
  /// False at the end of a graph: its last node was a norm, and was not computed.
  bool idle() const { return waiting_ == nullptr; }

 private:
  bool is_product_of_waiting(const ggml_tensor& node) const;
  void compute(const float* factors, const Threads& threads);

  Normalise normalise_;
  int32_t min_rows_;
  const ggml_tensor* waiting_ = nullptr;
};

}  // namespace tsp::ggml_adapter
