// SPDX-License-Identifier: MIT
// What the host is about to run, from the nodes that it asks the plugin about: which model, in
// chunks of how many rows, with flash attention or not. So that the plugin can say, before the
// first prompt, what will not happen.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "adapters/ggml/setting.h"
#include "ggml.h"

namespace tsp::ggml_plugin {

/// The host asks about the graph of a context when it makes it, and then at every batch: what is
/// said of the chunks is of the context that was made last. A process may have a model and a draft
/// of it, so layers are counted for each context, until the host asks about another one's.
class HostWatch {
 public:
  /// As at first.
  void clear();
  /// The number of the new context, from 1.
  int64_t made_context();
  void freed_context(int64_t context);
  int64_t contexts() const { return contexts_; }
  /// The host asks who takes a node. Contexts may be made on several threads.
  void asked(const ggml_tensor& node);

  /// Of the model of a context that is about to compute: it has been asked about wholly by then.
  int32_t num_layers(int64_t context);
  /// What the setting asks for and this host will not do; a sentence each.
  std::vector<std::string> remarks(const ggml_adapter::Setting& setting) const;
  /// Why no attention node can be served, where it is the host's doing; else empty.
  std::string why_nothing() const;

 private:
  std::atomic<int64_t> contexts_{0};
  std::atomic<int64_t> rows_{0};  // of the largest chunk that there may be
  std::atomic<bool> flash_attention_{false}, other_attention_{false};
  /// What a context showed of its model.
  struct Model {
    int32_t layers = 0;
    std::map<std::string, const ggml_tensor*, std::less<>> tensors;  // its weights and its cache
    const ggml_tensor* first = nullptr;  // weights: the same in every context of a model
    bool whole = false;                  // nothing asked about since is of this context
  };
  int32_t counted_layers(int64_t context) const;
  void count_layer(int32_t layer, const ggml_tensor* weights, const ggml_tensor* cache);
  bool is_of_others(const Model& model, const ggml_tensor& tensor) const;
  mutable std::mutex models_mutex_;
  std::vector<Model> models_{1};  // of each context; the first is nobody's
};

/// Of the model that an attention node belongs to, as far as the node shows it.
ggml_adapter::ModelNumbers numbers_of(const ggml_tensor& node);

}  // namespace tsp::ggml_plugin
