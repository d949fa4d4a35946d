// SPDX-License-Identifier: MIT
// A random model of a few hundred kilobytes as a GGUF file that llama.cpp loads like any other:
// attention of the real graph, cache and masks of the real engine, nothing to download.
#pragma once

#include <cstdint>
#include <string>

#include "ggml.h"

namespace tsp::test {

struct TinyModel {
  std::string arch = "llama";  // llama, gemma2 (soft-cap, sliding window), gemma3 (sliding window)
  int32_t layers = 3;
  int32_t embd = 64;
  int32_t heads = 4;
  int32_t kv_heads = 2;
  int32_t head_dim = 32;
  int32_t ff = 96;
  int32_t context = 4096;
  ggml_type weights = GGML_TYPE_F32;  // of the layers, where a row fills whole blocks of the type
  int32_t sliding_window = 128;       // gemma: of every second layer
  uint32_t seed = 1;
  bool add_bos = false;  // <|endoftext|> before every text
  /// Empty for none; the ChatML one that llama.cpp knows by its looks.
  std::string chat_template =
      "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
      "{% endfor %}<|im_start|>assistant\n";
};

/// Writes the model; byte-level vocabulary with the ChatML markers. Throws std::runtime_error.
void write_tiny_model(const TinyModel& model, const std::string& path);

}  // namespace tsp::test
