// SPDX-License-Identifier: MIT
// Computes the nodes that a context of the host gives to the plugin: with tokensparse where the
// data allows it, else in ggml's own kernel. One per context.
#pragma once

#include <memory>
#include <vector>

#include "adapters/ggml/attention_node.h"
#include "adapters/ggml/linear_node.h"
#include "adapters/ggml/plugin/cpu_backend.h"
#include "adapters/ggml/plugin/host.h"
#include "adapters/ggml/plugin/ledger.h"
#include "adapters/ggml/plugin/prompt_log.h"
#include "adapters/ggml/plugin/settings.h"

namespace tsp::ggml_plugin {

/// What the adapter is told, from what the user said.
ggml_adapter::Options attention_options(const Settings& settings, const Host& host);

/// The same for linear layers.
ggml_adapter::LinearOptions linear_options(const Settings& settings, const Host& host);

class NodeRunner {
 public:
  /// Null when the host has no CPU backend or the library cannot run here; `why` says so.
  static std::unique_ptr<NodeRunner> create(const Host& host, const Settings& settings,
                                            Ledger& ledger, std::string& why);
  ~NodeRunner();
  NodeRunner(const NodeRunner&) = delete;
  NodeRunner& operator=(const NodeRunner&) = delete;

  void set_threads(int32_t num_threads);
  /// Of the model, once it is known.
  void set_num_layers(int32_t num_layers);
  /// The nodes from here to the next call are one piece of a graph.
  void begin_piece();
  /// The host turns to something else. On the thread that computes.
  void end_prompt() { prompts_.end(); }
  /// False when neither we nor ggml could compute it.
  [[nodiscard]] bool compute(ggml_tensor& node);

 private:
  NodeRunner(const Host& host, const Settings& settings, Ledger& ledger);
  bool compute_or_throw(ggml_tensor& node);
  bool serve(ggml_tensor& node);
  bool compute_linear(ggml_tensor& node);
  void settle_precision_by_linear();
  double difference_from_ggml(ggml_tensor& node);
  void report(Totals totals);
  bool fits_setting(const ggml_tensor& node);
  void take_recommended(const ggml_tensor& node);

  Settings settings_;
  Ledger& ledger_;
  CpuBackend cpu_;
  tsp_context_t* ctx_ = nullptr;
  std::unique_ptr<ggml_adapter::AttentionServer> server_;
  std::unique_ptr<ggml_adapter::LinearServer> linear_;  // null: not asked for, or not there
  bool linear_served_ = false;
  std::vector<float> ours_;  // while verifying
  bool complained_ = false;
  int32_t num_layers_ = 0;
  bool contradicts_ = false;  // the setting is for another model: exact from then on
  PromptLog prompts_;
};

}  // namespace tsp::ggml_plugin
