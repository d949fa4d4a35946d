// SPDX-License-Identifier: MIT
#include "tests/ggml/tiny_model.h"

#include <cmath>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "ggml.h"
#include "gguf.h"

namespace tsp::test {
namespace {

struct Free {
  void operator()(gguf_context* gguf) const { gguf_free(gguf); }
  void operator()(ggml_context* ctx) const { ggml_free(ctx); }
};

/// The character by which byte-level BPE writes a byte: printable ones as themselves, the others
/// from U+0100 on.
std::string byte_token(int byte) {
  const auto printable = [](int b) {
    return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255);
  };
  int code = byte;
  if (!printable(byte)) {
    code = 256;
    for (int b = 0; b < byte; ++b) code += !printable(b);
  }
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

void set_vocabulary(gguf_context* gguf, const TinyModel& model) {
  constexpr int32_t kNormal = 1, kControl = 3;
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.push_back(byte_token(byte));
  std::vector<int32_t> types(tokens.size(), kNormal);
  for (const char* marker : {"<|im_start|>", "<|im_end|>", "<|endoftext|>"}) {
    tokens.emplace_back(marker);
    types.push_back(kControl);
  }
  std::vector<const char*> names;
  for (const std::string& token : tokens) names.push_back(token.c_str());
  const char* merges[] = {"e r"};  // llama.cpp wants some; "er" is no token, so it never applies
  gguf_set_val_str(gguf, "tokenizer.ggml.model", "gpt2");
  gguf_set_val_str(gguf, "tokenizer.ggml.pre", "qwen2");
  gguf_set_arr_str(gguf, "tokenizer.ggml.tokens", names.data(), names.size());
  gguf_set_arr_data(gguf, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, types.data(), types.size());
  gguf_set_arr_str(gguf, "tokenizer.ggml.merges", merges, 1);
  gguf_set_val_u32(gguf, "tokenizer.ggml.bos_token_id", 258);
  gguf_set_val_u32(gguf, "tokenizer.ggml.eos_token_id", 257);
  gguf_set_val_bool(gguf, "tokenizer.ggml.add_bos_token", model.add_bos);
  if (model.chat_template.empty()) return;
  gguf_set_val_str(gguf, "tokenizer.chat_template", model.chat_template.c_str());
}

constexpr int64_t kVocab = 259;

class Weights {
 public:
  Weights(gguf_context* gguf, uint32_t seed) : gguf_(gguf), random_(seed) {
    ctx_.reset(ggml_init({.mem_size = 64u << 20, .mem_buffer = nullptr, .no_alloc = false}));
    if (ctx_ == nullptr) throw std::runtime_error("no memory for a tiny model");
  }
  void matrix(const std::string& name, int64_t in, int64_t out, ggml_type type = GGML_TYPE_F32) {
    const float scale = 1 / std::sqrt(static_cast<float>(in));
    if (type == GGML_TYPE_F32 || in % ggml_blck_size(type) != 0) {
      fill(ggml_new_tensor_2d(ctx_.get(), GGML_TYPE_F32, in, out), name, scale, 0);
      return;
    }
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> values(static_cast<size_t>(in * out));
    for (float& value : values) value = normal(random_);
    ggml_tensor* tensor = ggml_new_tensor_2d(ctx_.get(), type, in, out);
    ggml_quantize_chunk(type, values.data(), tensor->data, 0, out, in, nullptr);
    add(tensor, name);
  }
  void norm(const std::string& name, int64_t size) {
    fill(ggml_new_tensor_1d(ctx_.get(), GGML_TYPE_F32, size), name, 0.1f, 1);
  }

 private:
  void fill(ggml_tensor* tensor, const std::string& name, float scale, float offset) {
    std::normal_distribution<float> normal;
    auto* values = static_cast<float*>(tensor->data);
    for (int64_t i = 0; i < ggml_nelements(tensor); ++i) {
      values[i] = offset + scale * normal(random_);
    }
    add(tensor, name);
  }
  void add(ggml_tensor* tensor, const std::string& name) {
    ggml_set_name(tensor, name.c_str());
    gguf_add_tensor(gguf_, tensor);
  }

  gguf_context* gguf_;
  std::mt19937 random_;
  std::unique_ptr<ggml_context, Free> ctx_;
};

void set_hyperparameters(gguf_context* gguf, const TinyModel& model) {
  const auto key = [&](const char* name) { return model.arch + "." + name; };
  const auto set = [&](const char* name, int32_t value) {
    gguf_set_val_u32(gguf, key(name).c_str(), static_cast<uint32_t>(value));
  };
  gguf_set_val_str(gguf, "general.architecture", model.arch.c_str());
  set("context_length", model.context);
  set("embedding_length", model.embd);
  set("block_count", model.layers);
  set("feed_forward_length", model.ff);
  set("attention.head_count", model.heads);
  set("attention.head_count_kv", model.kv_heads);
  set("attention.key_length", model.head_dim);
  set("attention.value_length", model.head_dim);
  set("rope.dimension_count", model.head_dim);
  gguf_set_val_f32(gguf, key("attention.layer_norm_rms_epsilon").c_str(), 1e-6f);
  if (model.arch == "llama") return;
  set("attention.sliding_window", model.sliding_window);
  set("attention.sliding_window_pattern", 2);
}

void add_layer(Weights& weights, const TinyModel& model, int32_t layer) {
  const std::string name = "blk." + std::to_string(layer) + ".";
  const int64_t q = model.heads * model.head_dim, kv = model.kv_heads * model.head_dim;
  weights.norm(name + "attn_norm.weight", model.embd);
  weights.matrix(name + "attn_q.weight", model.embd, q, model.weights);
  weights.matrix(name + "attn_k.weight", model.embd, kv, model.weights);
  weights.matrix(name + "attn_v.weight", model.embd, kv, model.weights);
  weights.matrix(name + "attn_output.weight", q, model.embd, model.weights);
  weights.norm(name + "ffn_norm.weight", model.embd);
  weights.matrix(name + "ffn_gate.weight", model.embd, model.ff, model.weights);
  weights.matrix(name + "ffn_up.weight", model.embd, model.ff, model.weights);
  weights.matrix(name + "ffn_down.weight", model.ff, model.embd, model.weights);
  if (model.arch == "llama") return;
  weights.norm(name + "post_attention_norm.weight", model.embd);
  weights.norm(name + "post_ffw_norm.weight", model.embd);
  if (model.arch == "gemma2") return;
  weights.norm(name + "attn_q_norm.weight", model.head_dim);
  weights.norm(name + "attn_k_norm.weight", model.head_dim);
}

}  // namespace

void write_tiny_model(const TinyModel& model, const std::string& path) {
  const std::unique_ptr<gguf_context, Free> gguf(gguf_init_empty());
  set_hyperparameters(gguf.get(), model);
  set_vocabulary(gguf.get(), model);
  Weights weights(gguf.get(), model.seed);
  weights.matrix("token_embd.weight", model.embd, kVocab);
  weights.norm("output_norm.weight", model.embd);
  if (model.arch == "llama") weights.matrix("output.weight", model.embd, kVocab);
  for (int32_t layer = 0; layer < model.layers; ++layer) add_layer(weights, model, layer);
  if (!gguf_write_to_file(gguf.get(), path.c_str(), false)) {
    throw std::runtime_error("cannot write " + path);
  }
}

}  // namespace tsp::test
