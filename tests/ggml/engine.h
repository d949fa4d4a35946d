// SPDX-License-Identifier: MIT
// llama.cpp with as little around it as a test of the adapter needs.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "llama.h"

namespace tsp::test {

/// Shows the nodes of a graph to a function, as llama_context_params.cb_eval does.
using NodeCallback = std::function<bool(ggml_tensor* node, bool ask)>;

class Engine {
 public:
  struct Options {
    int32_t context = 2048;
    int32_t ubatch = 512;
    int32_t sequences = 1;
    bool unified = true;
    llama_flash_attn_type flash_attention = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    bool repack = true;  // weights into the layout of ggml's own products
    int32_t threads = 2;
    ggml_type cache_type = GGML_TYPE_F16;
    ggml_type value_cache_type = GGML_TYPE_COUNT;  // of V; COUNT = as cache_type
    bool embeddings = false;
  };
  /// Throws std::runtime_error. `callback` may be empty.
  Engine(const std::string& path, const Options& options, NodeCallback callback);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// Runs the tokens as the next ones of each of the sequences (all in one batch) and returns the
  /// logits after each of the last `outputs` tokens of the batch.
  std::vector<float> decode(const std::vector<std::vector<llama_token>>& sequences,
                            int32_t outputs = 1);
  std::vector<float> decode(const std::vector<llama_token>& tokens, int32_t outputs = 1) {
    return decode(std::vector<std::vector<llama_token>>{tokens}, outputs);
  }
  const llama_vocab* vocab() const { return llama_model_get_vocab(model_); }
  const llama_model* model() const { return model_; }
  llama_context* context() { return context_; }
  /// The position of the next token of a sequence.
  int32_t& position(int32_t sequence) { return positions_[static_cast<size_t>(sequence)]; }

 private:
  NodeCallback callback_;
  llama_model* model_ = nullptr;
  llama_context* context_ = nullptr;
  std::vector<int32_t> positions_;
  bool embeddings_;
};

/// Pseudo-random tokens of the tiny model's bytes.
std::vector<llama_token> random_tokens(int32_t count, uint32_t seed);

/// |a - b| / |b|, root mean squares.
double relative_rms(const float* a, const float* b, size_t count);
inline double relative_rms(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() ? relative_rms(a.data(), b.data(), a.size()) : 1e30;
}

}  // namespace tsp::test
