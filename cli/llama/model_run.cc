// SPDX-License-Identifier: MIT
#include "cli/llama/model_run.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <utility>

#include "cli/llama/openmp_threads.h"
#include "cli/llama/peak_memory.h"
#include "cli/llama/progress.h"
#include "cli/verbs.h"

namespace tsp::cli {
namespace {

using ggml_adapter::AttentionServer;
using ggml_adapter::kServedRows;
using ggml_adapter::LayerStats;
using ggml_adapter::Refusal;
using ggml_adapter::Setting;

constexpr int32_t kStockUbatch = 512;  // llama.cpp's default, and where it is fastest
constexpr int32_t kAnswerTokens = 32;  // of an answer at once: decoding, so it stays exact

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(" \n\t\r");
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(" \n\t\r") - first + 1);
}

/// One sentence where nothing was served of a prompt long enough.
void check_served(const AttentionServer& server, const Model& model) {
  std::string reasons;
  std::vector<LayerStats> layers = server.layers();
  layers.push_back(server.no_layer());
  for (const LayerStats& layer : layers) {
    if (layer.served > 0) return;
  }
  for (size_t reason = 0; reason < static_cast<size_t>(Refusal::kCount); ++reason) {
    if (static_cast<Refusal>(reason) == Refusal::kShortChunk) continue;
    const bool any = std::any_of(layers.begin(), layers.end(),
                                 [&](const auto& layer) { return layer.refused[reason] > 0; });
    if (!any) continue;
    reasons += (reasons.empty() ? ": " : ", ");
    reasons += ggml_adapter::refusal_text(static_cast<Refusal>(reason));
  }
  throw Failure(model.path() + " has no attention layer that tokensparse can serve" +
                (reasons.empty() ? ": llama.cpp runs it without flash attention" : reasons));
}

int32_t head_dim_of(const Model& model) {
  char arch[64] = {}, length[32] = {};
  if (llama_model_meta_val_str(model.get(), "general.architecture", arch, sizeof arch) > 0) {
    const std::string key = std::string(arch) + ".attention.key_length";
    if (llama_model_meta_val_str(model.get(), key.c_str(), length, sizeof length) > 0) {
      return std::atoi(length);
    }
  }
  const int32_t heads = llama_model_n_head(model.get());
  return heads > 0 ? llama_model_n_embd(model.get()) / heads : 0;
}

}  // namespace

LayerStats RunResult::named() const {
  LayerStats sum;
  for (const LayerStats& layer : layers) {
    if (layer.named && layer.served > 0) sum.add(layer);
  }
  return sum;
}

LayerStats RunResult::all() const {
  LayerStats sum;
  for (const LayerStats& layer : layers) sum.add(layer);
  return sum;
}

double RunResult::attention_gain(const RunResult& stock) const {
  double theirs = 0, ours = 0;
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    if (layers[layer].served == 0 || layer >= stock.attention_by_layer.size()) continue;
    theirs += stock.attention_by_layer[layer];
    ours += attention_by_layer[layer];
  }
  return ours > 0 ? theirs / ours : 0;
}

std::vector<int32_t> RunResult::sparse_layers() const {
  std::vector<int32_t> sparse;
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    if (layers[layer].sparse > 0) sparse.push_back(static_cast<int32_t>(layer));
  }
  return sparse;
}

std::vector<NeverSparse> never_sparse(const RunResult& result, const Setting& setting) {
  std::map<std::string, std::vector<int32_t>> reasons;
  for (size_t layer = 0; layer < result.layers.size(); ++layer) {
    const std::string why =
        why_never_sparse(result.layers[layer], setting.min_keys, setting.min_rows);
    if (!why.empty()) reasons[why].push_back(static_cast<int32_t>(layer));
  }
  std::vector<NeverSparse> list;
  for (const auto& [why, layers] : reasons) list.push_back({why, layers});
  return list;
}

ggml_adapter::ModelNumbers numbers_of(const Model& model) {
  return {.name = "",
          .num_layers = model.num_layers(),
          .num_heads = llama_model_n_head(model.get()),
          .num_kv_heads = llama_model_n_head_kv(model.get()),
          .head_dim = head_dim_of(model)};
}

Setting ModelRunner::settled(Setting setting) const {
  setting = recommended(setting, numbers_of(model_));
  const std::string fault = contradiction(setting.model, numbers_of(model_));
  if (!fault.empty()) throw Failure("the setting " + fault + ": " + model_.path());
  const std::string broken = contradiction(setting);
  if (!broken.empty()) throw Failure(broken);
  if (setting.layers.highest() >= model_.num_layers()) {
    throw Failure("layers: must be below " + std::to_string(model_.num_layers()) +
                  ", the layers of the model, got " + setting.layers.text());
  }
  const tokensparse::Context ctx = open_on_openmp(conditions_.isa, conditions_.threads);
  const bool possible = ggml_adapter::has_bf16(ctx.get());
  if (setting.precision == ggml_adapter::Precision::kBf16 && !possible) {
    throw Failure(tsp_last_error());
  }
  const bool rounds = conditions_.linear != nullptr && conditions_.linear->rounds() &&
                      model_.weight_type() != LLAMA_FTYPE_ALL_F32;
  settle_precision(setting, rounds, possible);
  return setting;
}

int32_t ModelRunner::context_tokens(const Prompt& prompt) const {
  const int64_t answer =
      std::max<int64_t>(prompt.answer_tokens, static_cast<int64_t>(prompt.expected.size()));
  const int64_t needed = static_cast<int64_t>(prompt.tokens.size()) + answer;
  const int32_t asked = conditions_.context;
  const int32_t limit = asked > 0 ? asked : model_.trained_context();
  if (needed > limit) {
    throw Failure("the prompt has " + std::to_string(prompt.tokens.size()) + " tokens, with " +
                  std::to_string(answer) + " to answer in more than the context of " +
                  std::to_string(limit) +
                  (asked > 0 ? " (--ctx)" : ", which the model was trained for (--ctx)"));
  }
  return asked > 0 ? asked : static_cast<int32_t>(needed);
}

void ModelRunner::probe(const Prompt& prompt, const Setting& setting) const {
  (void)context_tokens(prompt);  // says so at once
  if (prompt.tokens.size() < kServedRows) return;
  const std::vector<llama_token> start(prompt.tokens.begin(), prompt.tokens.begin() + kServedRows);
  const tokensparse::Context ctx = open_on_openmp(conditions_.isa, conditions_.threads);
  ggml_adapter::Options options;
  options.setting = exact(setting);
  AttentionServer server(ctx.get(), options);
  Session session(model_,
                  {.context = kServedRows,
                   .ubatch = kServedRows,
                   .threads = conditions_.threads,
                   .linear = conditions_.linear},  // which learns the model's gated layers
                  &server);
  Progress silent("", kServedRows, false);
  session.read_prompt(start, silent);
  check_served(server, model_);
}

RunResult ModelRunner::stock(const Prompt& prompt) const {
  SessionOptions options;
  options.ubatch = kStockUbatch;
  return run("stock", prompt, options, nullptr);
}

RunResult ModelRunner::ours(const std::string& name, const Prompt& prompt,
                            const Setting& settled) const {
  ggml_adapter::Options adapter;
  adapter.setting = settled;
  adapter.num_layers = model_.num_layers();
  adapter.choose = conditions_.choose;
  const tokensparse::Context ctx = open_on_openmp(conditions_.isa, conditions_.threads);
  AttentionServer server(ctx.get(), adapter);
  SessionOptions options;
  options.ubatch = conditions_.chunk();
  const auto length = static_cast<int32_t>(prompt.tokens.size());
  if (conditions_.ubatch == 0 && length > kLateFrom + kChunk) options.late_ubatch = kLateChunk;
  options.linear = conditions_.linear;
  if (options.linear != nullptr) options.linear->reset_stats();
  RunResult result = run(name, prompt, options, &server);
  if (options.linear != nullptr) {
    result.linear = options.linear->stats();
    result.linear_bytes =
        static_cast<int64_t>(options.linear->buffer_bytes() + options.linear->kept_bytes());
  }
  return result;
}

RunResult ModelRunner::run(const std::string& name, const Prompt& prompt,
                           const SessionOptions& wanted, AttentionServer* server) const {
  reset_peak_memory();
  SessionOptions options = wanted;
  options.context = context_tokens(prompt);
  options.ubatch = std::min(wanted.ubatch, options.context);
  options.threads = conditions_.threads;
  if (prompt.expected.size() > 1) options.outputs = std::min(kAnswerTokens, options.ubatch);
  Session session(model_, options, server);
  Progress progress(name + ": reading the prompt", static_cast<int64_t>(prompt.tokens.size()),
                    conditions_.progress);
  const llama_token first = session.read_prompt(prompt.tokens, progress);
  progress.finish();
  RunResult result;
  result.name = name;
  result.ttft_s = session.read_seconds();
  result.attention_s = session.attention_seconds();
  result.attention_by_layer = session.attention_by_layer();
  if (server != nullptr) result.layers = server->layers();
  if (!prompt.expected.empty()) {
    const AnswerLoss loss = session.loss_of(prompt.expected);
    result.loss = loss.mean;
    result.right = loss.right;
  }
  if (prompt.answer_tokens > 0) {
    result.answer = trimmed(session.answer(first, prompt.answer_tokens, conditions_.on_answer));
  }
  result.decode_tps = session.decode_per_second();
  result.peak_bytes = peak_memory();
  return result;
}

}  // namespace tsp::cli
