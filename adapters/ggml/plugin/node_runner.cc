// SPDX-License-Identifier: MIT
#include "adapters/ggml/plugin/node_runner.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <new>

#include "adapters/ggml/plugin/host_watch.h"

namespace tsp::ggml_plugin {

using ggml_adapter::AttentionServer;
using ggml_adapter::LayerStats;
using ggml_adapter::LinearKind;
using ggml_adapter::Refusal;

ggml_adapter::Options attention_options(const Settings& settings, const Host& host) {
  ggml_adapter::Options options;
  options.setting = settings.setting;
  options.serve_rows = settings.serve_rows;
  options.inputs_computed = true;
  options.type_traits = host.ggml_get_type_traits;
  options.max_bytes = settings.memory_bytes;
  return options;
}

ggml_adapter::LinearOptions linear_options(const Settings& settings, const Host& host) {
  ggml_adapter::LinearOptions options;
  // auto: f16 weights lose accuracy in bf16, and the others would take them.
  options.kind = settings.linear == Settings::kOneDnn ? LinearKind::kOneDnn
                 : settings.linear == Settings::kBf16 ? LinearKind::kBf16
                                                      : LinearKind::kInt8;
  options.min_rows = settings.serve_rows;
  options.share_inputs = true;  // gate and up come in one piece of a graph: begin_piece()
  options.type_traits = host.ggml_get_type_traits;
  const char* library = std::getenv("TOKENSPARSE_ONEDNN_LIBRARY");  // as the program reads it
  if (library != nullptr) options.library = library;
  return options;
}

std::unique_ptr<NodeRunner> NodeRunner::create(const Host& host, const Settings& settings,
                                               Ledger& ledger, std::string& why) {
  std::unique_ptr<NodeRunner> runner(new NodeRunner(host, settings, ledger));
  if (!runner->cpu_.ok()) {
    why = "the host has no CPU backend";
    return nullptr;
  }
  tsp_context_options_t options;
  tsp_context_options_init(&options, sizeof options);
  options.num_threads = 1;  // the host says how many before each graph
  options.parallel = CpuBackend::parallel;
  options.parallel_user = &runner->cpu_;
  if (tsp_context_create(&options, &runner->ctx_) != TSP_OK) {
    why = tsp_last_error();
    return nullptr;
  }
  if (settings.linear != Settings::kGgml) {
    std::string without;  // the device has said so
    ggml_adapter::LinearOptions linear = linear_options(settings, host);
    linear.parallel = CpuBackend::parallel;
    linear.parallel_user = &runner->cpu_;
    runner->linear_ = ggml_adapter::LinearServer::create(linear, without);
  }
  ggml_adapter::Options attention = attention_options(settings, host);
  settle_precision(attention.setting, false, ggml_adapter::has_bf16(runner->ctx_));
  runner->server_ = std::make_unique<AttentionServer>(runner->ctx_, attention);
  runner->set_threads(1);
  return runner;
}

NodeRunner::NodeRunner(const Host& host, const Settings& settings, Ledger& ledger)
    : settings_(settings), ledger_(ledger), cpu_(host), prompts_(ledger, settings.verbose) {}

NodeRunner::~NodeRunner() {
  prompts_.end();
  tsp_context_destroy(ctx_);
}

void NodeRunner::set_num_layers(int32_t num_layers) {
  num_layers_ = num_layers;
  server_->policy().set_num_layers(num_layers);
}

bool NodeRunner::fits_setting(const ggml_tensor& node) {
  ggml_adapter::ModelNumbers model = numbers_of(node);
  model.num_layers = num_layers_;
  const std::string fault = contradiction(settings_.setting.model, model);
  if (!fault.empty()) log_line("the setting " + fault + "; attention stays exact");
  return fault.empty();
}

void NodeRunner::take_recommended(const ggml_tensor& node) {
  ggml_adapter::ModelNumbers model = numbers_of(node);
  model.num_layers = num_layers_;
  settings_.setting = recommended(settings_.setting, model);
  ggml_adapter::Setting setting = settings_.setting;
  settle_precision(setting, linear_served_ && linear_->rounds(), ggml_adapter::has_bf16(ctx_));
  server_->set_setting(setting, num_layers_);
  log_line(setting.model.name.empty()
               ? "no setting was measured on a model with these numbers"
               : "the setting measured on " + setting.model.name + ": " + describe(settings_));
}

void NodeRunner::set_threads(int32_t num_threads) {
  const int32_t wanted = settings_.threads > 0 ? settings_.threads : std::max(1, num_threads);
  cpu_.set_threads(wanted);
  (void)tsp_context_set_threads(ctx_, wanted);  // 1 or more: cannot fail
  if (linear_ != nullptr) linear_->set_threads(wanted);
}

void NodeRunner::begin_piece() {
  if (linear_ != nullptr) linear_->begin_graph();
}

bool NodeRunner::compute(ggml_tensor& node) {
  try {
    return compute_or_throw(node);
  } catch (const std::bad_alloc&) {  // beside our own memory, which has a limit
    return cpu_.compute(node);
  }
}

bool NodeRunner::compute_or_throw(ggml_tensor& node) {
  if (node.op == GGML_OP_MUL_MAT) return compute_linear(node);
  Totals totals;
  if (serve(node)) {
    if (settings_.verify) {
      totals.worst_error = difference_from_ggml(node);
      totals.verified = 1;
    }
    report(totals);
    return true;
  }
  report(totals);
  return cpu_.compute(node);
}

bool NodeRunner::serve(ggml_tensor& node) {
  if (settings_.setting.recommended) take_recommended(node);
  if (!contradicts_ && settings_.setting.sparse() && !fits_setting(node)) {
    contradicts_ = true;
    server_->policy().stop();
  }
  if (server_->check(node) != Refusal::kNone) return false;
  if (server_->serve(node) == TSP_OK) {
    prompts_.add(ggml_adapter::layer_of(node), server_->layers());
    return true;
  }
  if (!complained_) {
    log_line(std::string("a node is left to ggml: ") + tsp_last_error());
    complained_ = true;
  }
  return false;
}

bool NodeRunner::compute_linear(ggml_tensor& node) {
  if (linear_ == nullptr || linear_->check(node) != ggml_adapter::LinearRefusal::kNone ||
      !linear_->serve(node)) {
    return cpu_.compute(node);
  }
  if (!linear_served_) settle_precision_by_linear();
  Totals totals;
  totals.linear = linear_->stats().served;
  totals.linear_seconds = linear_->stats().seconds;
  linear_->reset_stats();
  ledger_.add(totals);
  return true;
}

/// Attention may round as soon as a linear layer has. A layer's own products come before its
/// attention, so all of a context is alike; a model whose weights the engine does not take stays in
/// f32.
void NodeRunner::settle_precision_by_linear() {
  linear_served_ = true;
  ggml_adapter::Setting setting = settings_.setting;
  settle_precision(setting, linear_->rounds(), ggml_adapter::has_bf16(ctx_));
  server_->set_precision(setting.op.precision);
}

double NodeRunner::difference_from_ggml(ggml_tensor& node) {
  auto* data = static_cast<float*>(node.data);
  const auto count = static_cast<size_t>(node.ne[0] * node.ne[1] * node.ne[2] * node.ne[3]);
  ours_.assign(data, data + count);
  double error = INFINITY;
  if (cpu_.compute(node)) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < count; ++i) {
      difference += (double{ours_[i]} - data[i]) * (double{ours_[i]} - data[i]);
      norm += double{data[i]} * data[i];
    }
    error = std::sqrt(difference / std::max(norm, 1e-30));
    if (std::isnan(error)) error = INFINITY;
  }
  std::copy(ours_.begin(), ours_.end(), data);
  return error;
}

void NodeRunner::report(Totals totals) {
  totals.layers = server_->layers();
  totals.no_layer = server_->no_layer();
  server_->reset_stats();
  totals.memory_bytes = server_->bytes() + ours_.capacity() * sizeof(float);
  ledger_.add(totals);
}

}  // namespace tsp::ggml_plugin
