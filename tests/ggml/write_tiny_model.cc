// SPDX-License-Identifier: MIT
// A tiny random GGUF for the tests that start the program.
// usage: write_tiny_model OUT.gguf [ARCH [CONTEXT [LAYERS [WEIGHTS [CHAT-TEMPLATE [HEADS KV_HEADS
// HEAD_DIM]]]]]]
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>

#include "tests/ggml/tiny_model.h"

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  tsp::test::TinyModel model;
  if (argc > 2) model.arch = argv[2];
  if (argc > 3) model.context = std::atoi(argv[3]);
  if (argc > 4) model.layers = std::atoi(argv[4]);
  for (const ggml_type type : {GGML_TYPE_F16, GGML_TYPE_Q8_0}) {
    if (argc > 5 && std::strcmp(argv[5], ggml_type_name(type)) == 0) model.weights = type;
  }
  if (argc > 6) model.chat_template = argv[6];
  if (argc > 9) {
    model.heads = std::atoi(argv[7]);
    model.kv_heads = std::atoi(argv[8]);
    model.head_dim = std::atoi(argv[9]);
  }
  try {
    tsp::test::write_tiny_model(model, argv[1]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
