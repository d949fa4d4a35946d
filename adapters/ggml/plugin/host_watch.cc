// SPDX-License-Identifier: MIT
#include "adapters/ggml/plugin/host_watch.h"

#include <algorithm>
#include <cstdio>
#include <string_view>

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

/// Null where the keys of an attention node lie in none.
const ggml_tensor* cache_of(const ggml_tensor& node) {
  const ggml_tensor* keys = node.src[ggml_adapter::kK];
  return keys == nullptr ? nullptr : keys->view_src;
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

int32_t HostWatch::num_layers(int64_t context) {
  {
    const std::lock_guard lock(models_mutex_);
    const auto at = static_cast<size_t>(context);
    if (at < models_.size()) models_[at].whole = true;
  }
  return counted_layers(context);
}

int32_t HostWatch::counted_layers(int64_t context) const {
  const std::lock_guard lock(models_mutex_);
  const auto at = static_cast<size_t>(context);
  return at < models_.size() ? models_[at].layers : 0;
}

/// Its tensors may be another's before long.
void HostWatch::freed_context(int64_t context) {
  const std::lock_guard lock(models_mutex_);
  const auto at = static_cast<size_t>(context);
  if (at < models_.size()) models_[at].tensors.clear();
}

/// By name the same tensor of another model, or one that a context of another model has.
bool HostWatch::is_of_others(const Model& model, const ggml_tensor& tensor) const {
  const auto same_name = model.tensors.find(std::string_view(tensor.name));
  if (same_name != model.tensors.end()) return same_name->second != &tensor;
  return std::any_of(models_.begin(), models_.end(), [&](const Model& other) {
    const auto found = other.tensors.find(std::string_view(tensor.name));
    return found != other.tensors.end() && found->second == &tensor && other.first != model.first;
  });
}

void HostWatch::count_layer(int32_t layer, const ggml_tensor* weights, const ggml_tensor* cache) {
  if (layer < 0) return;
  const std::lock_guard lock(models_mutex_);
  Model& model = models_.back();
  if (model.whole) return;
  if (weights != nullptr && model.first == nullptr) {
    model.first = weights;
    for (const Model& other : models_) {
      const auto found = other.tensors.find(std::string_view(weights->name));
      if (found != other.tensors.end() && found->second == weights) model.first = other.first;
    }
  }
  for (const ggml_tensor* tensor : {weights, cache}) {
    if (tensor == nullptr) continue;
    if (is_of_others(model, *tensor)) {
      model.whole = true;
      return;
    }
    model.tensors.emplace(tensor->name, tensor);
  }
  model.layers = std::max(model.layers, layer + 1);
}

void HostWatch::asked(const ggml_tensor& node) {
  switch (node.op) {
    case GGML_OP_FLASH_ATTN_EXT:
      flash_attention_ = true;
      raise(rows_, node.src[0]->ne[1]);
      count_layer(ggml_adapter::layer_of(node), nullptr, cache_of(node));
      break;
    case GGML_OP_MUL_MAT:
      // Without data the host is loading it, and asks where to: no context has it yet.
      if (node.src[0] == nullptr || node.src[0]->data == nullptr) break;
      count_layer(layer_of_weights(*node.src[0]), node.src[0], nullptr);
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
  const int32_t layers = counted_layers(contexts_);
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
