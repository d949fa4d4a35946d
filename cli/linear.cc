// SPDX-License-Identifier: MIT
#include "cli/linear.h"

#include <cstdlib>

#include "cli/verbs.h"

namespace tsp::cli {

void add_linear_options(CLI::App& app, LinearChoice& choice) {
  app.add_option(
         "--linear", choice.who,
         "Who multiplies by the weights while the prompt is read: ggml; onednn, with weights\n"
         "and activations rounded to bf16; auto: onednn where it is there and faster, and the\n"
         "weights are not f16 or f32")
      ->check(CLI::IsMember({"auto", "ggml", "onednn"}))
      ->capture_default_str();
  app.add_option("--linear-keep", choice.keep_mb,
                 "Megabytes for weights that onednn keeps dequantised, 2 bytes a parameter")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
}

void open_linear(LinearChoice& choice, int32_t threads) {
  if (choice.who == "ggml") return;
  ggml_adapter::LinearOptions options;
  options.threads = threads;
  options.keep_bytes = static_cast<size_t>(choice.keep_mb) * 1'000'000;
  options.type_traits = ggml_get_type_traits;
  const char* library = std::getenv("TOKENSPARSE_ONEDNN_LIBRARY");
  if (library != nullptr) options.library = library;
  std::string why;
  choice.server = ggml_adapter::LinearServer::create(options, why);
  if (choice.who == "onednn" && choice.server == nullptr) throw Failure("--linear onednn: " + why);
  if (choice.who == "auto" && choice.server != nullptr && !choice.server->pays_off()) {
    choice.server.reset();
    why = "oneDNN is not known to be faster on this processor";
  }
  if (choice.server != nullptr) {
    choice.description = choice.server->description();
  } else {
    choice.description = "ggml (" + why + ")";
  }
}

void keep_exact_weights(LinearChoice& choice, llama_ftype weights) {
  if (choice.who != "auto" || choice.server == nullptr) return;
  if (weights == LLAMA_FTYPE_ALL_F32) {
    choice.description = "ggml (f32 weights)";
  } else if (weights == LLAMA_FTYPE_MOSTLY_F16 && choice.server->rounds()) {
    choice.description = "ggml (f16 weights lose accuracy in bf16)";
  } else {
    return;
  }
  choice.server.reset();
}

}  // namespace tsp::cli
