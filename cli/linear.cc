// SPDX-License-Identifier: MIT
#include "cli/linear.h"

#include <cstdlib>

#include "cli/verbs.h"

namespace tsp::cli {

void add_linear_options(CLI::App& app, LinearChoice& choice) {
  app.add_option(
         "--linear", choice.who,
         "Who multiplies by the weights while the prompt is read: ggml; onednn, with weights\n"
         "and activations rounded to bf16; auto: onednn where it is there and faster")
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
    choice.description =
        "oneDNN " + choice.server->library_version() + (choice.server->bf16() ? ", bf16" : ", f32");
  } else {
    choice.description = "ggml (" + why + ")";
  }
}

}  // namespace tsp::cli
