// SPDX-License-Identifier: MIT
#include "cli/llama/node_timer.h"

#include <algorithm>
#include <chrono>
#include <new>

#include "adapters/ggml/attention_shape.h"
#include "adapters/ggml/layer_choice.h"
#include "ggml-cpu.h"
#include "ggml.h"

namespace tsp::cli {
namespace {

constexpr int64_t kMinRows = 64;  // decoding is not timed

}  // namespace

NodeTimer::NodeTimer(int32_t threads) : backend_(ggml_backend_cpu_init()) {
  if (backend_ == nullptr) throw std::bad_alloc();
  ggml_backend_cpu_set_n_threads(backend_.get(), threads);
}

void NodeTimer::set_abort(ggml_abort_callback abort, void* data) {
  ggml_backend_cpu_set_abort_callback(backend_.get(), abort, data);
}

bool NodeTimer::call(ggml_tensor* node, bool ask, void* self) {
  return static_cast<NodeTimer*>(self)->on_node(node, ask);
}

bool NodeTimer::on_node(ggml_tensor* node, bool ask) {
  if (node->op != GGML_OP_FLASH_ATTN_EXT || node->src[0]->ne[1] < kMinRows) return false;
  if (ask) {
    node->flags &= ~GGML_TENSOR_FLAG_COMPUTE;  // the scheduler passes it over
    return true;
  }
  node->flags |= GGML_TENSOR_FLAG_COMPUTE;
  const size_t bytes = ggml_graph_overhead_custom(1, false) + ggml_tensor_overhead();
  const std::unique_ptr<ggml_context, Free> ctx(
      ggml_init({.mem_size = bytes, .mem_buffer = nullptr, .no_alloc = true}));
  if (ctx == nullptr) return false;
  ggml_cgraph* graph = ggml_new_graph_custom(ctx.get(), 1, false);
  ggml_graph_add_node(graph, node);
  const auto start = std::chrono::steady_clock::now();
  const ggml_status status = ggml_backend_graph_compute(backend_.get(), graph);
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  seconds_ += taken.count();
  const int32_t layer = ggml_adapter::layer_of(*node);
  if (layer >= 0 && layer < ggml_adapter::kMaxLayers) {
    const auto index = static_cast<size_t>(layer);
    layers_.resize(std::max(layers_.size(), index + 1));
    layers_[index] += taken.count();
  }
  return status == GGML_STATUS_SUCCESS;
}

}  // namespace tsp::cli
