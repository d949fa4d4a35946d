// SPDX-License-Identifier: MIT
// What the host is about to run, from the nodes that it asks the plugin about: which model, in
// chunks of how many rows, with flash attention or not. So that the plugin can say, before the
// first prompt, what will not happen.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "adapters/ggml/setting.h"
#include "ggml.h"

namespace tsp::ggml_plugin {

/// The number of layers is the largest of all models of the process: of a model and its draft, the
/// model's. All else is of the context that was made last: the host asks about its graph then.
class HostWatch {
 public:
  /// As at first.
  void clear();
  void made_context();
  int64_t contexts() const { return contexts_; }
  /// The host asks who takes a node. Contexts may be made on several threads.
  void asked(const ggml_tensor& node);

  int32_t num_layers() const { return layers_; }
  /// What the setting asks for and this host will not do; a sentence each.
  std::vector<std::string> remarks(const ggml_adapter::Setting& setting) const;
  /// Why no attention node can be served, where it is the host's doing; else empty.
  std::string why_nothing() const;

 private:
  std::atomic<int64_t> contexts_{0};
  std::atomic<int32_t> layers_{0};
  std::atomic<int64_t> rows_{0};  // of the largest chunk that there may be
  std::atomic<bool> flash_attention_{false}, other_attention_{false};
};

/// Of the model that an attention node belongs to, as far as the node shows it.
ggml_adapter::ModelNumbers numbers_of(const ggml_tensor& node);

}  // namespace tsp::ggml_plugin
