// SPDX-License-Identifier: MIT
#include "tests/ggml/engine.h"

#include <cmath>
#include <cstdio>
#include <random>
#include <stdexcept>

namespace tsp::test {
namespace {

bool on_node(ggml_tensor* node, bool ask, void* callback) {
  return (*static_cast<NodeCallback*>(callback))(node, ask);
}

void log_errors(ggml_log_level level, const char* text, void*) {
  if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
}

}  // namespace

Engine::Engine(const std::string& path, const Options& options, NodeCallback callback)
    : callback_(std::move(callback)),
      positions_(static_cast<size_t>(options.sequences), 0),
      embeddings_(options.embeddings) {
  llama_log_set(log_errors, nullptr);
  llama_backend_init();
  llama_model_params model_params = llama_model_default_params();
  model_params.n_gpu_layers = 0;
  model_params.use_extra_bufts = options.repack;
  model_ = llama_model_load_from_file(path.c_str(), model_params);
  if (model_ == nullptr) throw std::runtime_error("cannot load " + path);
  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<uint32_t>(options.context);
  params.n_batch = params.n_ctx;
  params.n_ubatch = static_cast<uint32_t>(options.ubatch);
  params.n_seq_max = static_cast<uint32_t>(options.sequences);
  params.kv_unified = options.unified;
  params.n_threads = params.n_threads_batch = options.threads;
  params.flash_attn_type = options.flash_attention;
  params.type_k = params.type_v = options.cache_type;
  if (options.value_cache_type != GGML_TYPE_COUNT) params.type_v = options.value_cache_type;
  params.embeddings = options.embeddings;
  if (options.embeddings) params.pooling_type = LLAMA_POOLING_TYPE_NONE;
  if (callback_) {
    params.cb_eval = on_node;
    params.cb_eval_user_data = &callback_;
  }
  context_ = llama_init_from_model(model_, params);
  if (context_ == nullptr) {
    llama_model_free(model_);
    throw std::runtime_error("cannot make a context of " + path);
  }
}

Engine::~Engine() {
  llama_free(context_);
  llama_model_free(model_);
}

std::vector<float> Engine::decode(const std::vector<std::vector<llama_token>>& sequences,
                                  int32_t outputs) {
  size_t count = 0;
  for (const auto& tokens : sequences) count += tokens.size();
  const auto length = static_cast<int32_t>(count);
  llama_batch batch = llama_batch_init(length, 0, 1);
  for (size_t seq = 0; seq < sequences.size(); ++seq) {
    for (const llama_token token : sequences[seq]) {
      const int32_t i = batch.n_tokens++;
      batch.token[i] = token;
      batch.pos[i] = positions_[seq]++;
      batch.n_seq_id[i] = 1;
      batch.seq_id[i][0] = static_cast<llama_seq_id>(seq);
      batch.logits[i] = i >= length - outputs;
    }
  }
  const int32_t status = llama_decode(context_, batch);
  llama_batch_free(batch);
  if (status != 0) throw std::runtime_error("llama_decode returned " + std::to_string(status));
  std::vector<float> rows;
  for (int32_t i = length - outputs; i < length; ++i) {
    const float* row =
        embeddings_ ? llama_get_embeddings_ith(context_, i) : llama_get_logits_ith(context_, i);
    const int32_t size = embeddings_ ? llama_model_n_embd(model_) : llama_vocab_n_tokens(vocab());
    rows.insert(rows.end(), row, row + size);
  }
  return rows;
}

std::vector<llama_token> random_tokens(int32_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<llama_token> tokens(static_cast<size_t>(count));
  for (llama_token& token : tokens) token = static_cast<llama_token>(random() % 256);
  return tokens;
}

double relative_rms(const float* a, const float* b, size_t count) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < count; ++i) {
    difference += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
    norm += double{b[i]} * b[i];
  }
  return std::sqrt(difference / norm);
}

}  // namespace tsp::test
