// SPDX-License-Identifier: MIT
// How long ggml's own attention takes inside a llama_decode(): the stock side of a comparison.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "ggml-backend.h"

namespace tsp::cli {

/// An eval callback that runs each attention node of >= `min_rows` query rows as a graph of its own
/// on a CPU backend of its own: the same kernel on the same threads (OpenMP keeps one team for a
/// calling thread), with the clock read before and after. It costs a barrier
/// and the planning of a graph of one node, for each of them.
class NodeTimer {
 public:
  explicit NodeTimer(int32_t threads);

  static bool call(ggml_tensor* node, bool ask, void* self);

  double seconds() const { return seconds_; }
  /// By layer; of nodes that have one.
  const std::vector<double>& layers() const { return layers_; }
  void set_abort(ggml_abort_callback abort, void* data);

 private:
  bool on_node(ggml_tensor* node, bool ask);

  struct Free {
    void operator()(ggml_backend* backend) const { ggml_backend_free(backend); }
    void operator()(ggml_context* ctx) const { ggml_free(ctx); }
  };
  std::unique_ptr<ggml_backend, Free> backend_;
  double seconds_ = 0;
  std::vector<double> layers_;
};

}  // namespace tsp::cli
