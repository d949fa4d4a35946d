// SPDX-License-Identifier: MIT
#include "adapters/ggml/plugin/host_watch.h"

#include <algorithm>
#include <cstdio>

#include "adapters/ggml/attention_shape.h"

namespace tsp::ggml_plugin {
namespace {

template <typename T>
void raise(std::atomic<T>& most, T value) {
  T seen = most;
  while (seen < value && !most.compare_exchange_weak(seen, value)) {
  }
}

/// Of weights "blk.7.attn_q.weight"; -1 of others. Unlike caches, every layer has some.
int32_t layer_of_weights(const ggml_tensor& weights) {
  int layer = -1;
  return std::sscanf(weights.name, "blk.%d.", &layer) == 1 && layer >= 0 &&
                 layer < ggml_adapter::kMaxLayers
             ? layer
             : -1;
}

}  // namespace

void HostWatch::clear() {
  contexts_ = 0;
  rows_ = 0;
  flash_attention_ = other_attention_ = false;
  const std::lock_guard lock(models_mutex_);
  models_.assign(1, {});
}

int64_t HostWatch::made_context() {
  rows_ = 0;
  flash_attention_ = other_attention_ = false;
  const std::lock_guard lock(models_mutex_);
  models_.emplace_back();
  return ++contexts_;
}

int32_t HostWatch::num_layers(int64_t context) const {
  const std::lock_guard lock(models_mutex_);
  const auto at = static_cast<size_t>(context);
  return at < models_.size() ? models_[at].layers : 0;
}

void HostWatch::count_layers(const ggml_tensor* weights, int32_t layer) {
  if (layer < 0) return;
  const std::lock_guard lock(models_mutex_);
  Model& model = models_.back();
  if (weights != nullptr && model.weights == nullptr) {
    model.first = weights->name;
    model.weights = weights;
  } else if (weights != nullptr && model.weights != weights && model.first == weights->name) {
    model.others = true;
  }
  if (!model.others) model.layers = std::max(model.layers, layer + 1);
}

void HostWatch::asked(const ggml_tensor& node) {
  switch (node.op) {
    case GGML_OP_FLASH_ATTN_EXT:
      flash_attention_ = true;
      raise(rows_, node.src[0]->ne[1]);
      count_layers(nullptr, ggml_adapter::layer_of(node));
      break;
    case GGML_OP_MUL_MAT:
      if (node.src[0] != nullptr) count_layers(node.src[0], layer_of_weights(*node.src[0]));
      break;
    case GGML_OP_SOFT_MAX:  // under a mask: attention in parts
      if (node.src[1] != nullptr) other_attention_ = true;
      break;
    default:
      break;
  }
}

std::string HostWatch::why_nothing() const {
  const bool off = other_attention_ && !flash_attention_;
  return off ? "0 nodes to serve: is flash attention on (-fa on)?" : "";
}

std::vector<std::string> HostWatch::remarks(const ggml_adapter::Setting& setting) const {
  std::vector<std::string> remarks;
  if (!setting.sparse() || rows_ == 0) return remarks;
  if (rows_ < setting.min_rows) {
    remarks.push_back("no layer will be sparse: the host reads prompts in chunks of " +
                      std::to_string(rows_) + " rows, below min_rows " +
                      std::to_string(setting.min_rows) + "; start it with -ub 2048");
  }
  const int32_t layers = num_layers(contexts_);
  if (setting.layers.highest() >= layers) {
    remarks.push_back("there is no layer " + std::to_string(setting.layers.highest()) +
                      " in this model of " + std::to_string(layers) + " layers; it is not missed");
  }
  return remarks;
}

ggml_adapter::ModelNumbers numbers_of(const ggml_tensor& node) {
  ggml_adapter::ModelNumbers model;
  model.num_heads = static_cast<int32_t>(node.src[ggml_adapter::kQ]->ne[2]);
  model.num_kv_heads = static_cast<int32_t>(node.src[ggml_adapter::kK]->ne[2]);
  model.head_dim = static_cast<int32_t>(node.src[ggml_adapter::kQ]->ne[0]);
  return model;
}

}  // namespace tsp::ggml_plugin
