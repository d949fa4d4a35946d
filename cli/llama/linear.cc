// SPDX-License-Identifier: MIT
#include "cli/llama/linear.h"

#include <cstdlib>
#include <initializer_list>

#include "cli/llama/openmp_threads.h"
#include "cli/llama/peak_memory.h"
#include "cli/options.h"
#include "cli/verbs.h"

namespace tsp::cli {
namespace {

using ggml_adapter::LinearKind;

/// In 8 bits the weights of a model of 0.5B take 0.4 GB, and making them anew for each chunk of a
/// prompt 4 % of the time; in bf16 0.7 GB and 1 %.
size_t keep_bytes(const LinearChoice& choice, LinearKind kind) {
  if (choice.keep_mb >= 0) return static_cast<size_t>(choice.keep_mb) * 1'000'000;
  return kind == LinearKind::kInt8 ? static_cast<size_t>(available_memory() / 8) : 0;
}

/// Null with a reason where the engine is missing or, under auto, not known to pay.
std::unique_ptr<ggml_adapter::LinearServer> open(const LinearChoice& choice, LinearKind kind,
                                                 std::string& why) {
  ggml_adapter::LinearOptions options;
  options.kind = kind;
  options.threads = choice.threads;
  options.parallel = run_on_openmp;
  options.keep_bytes = keep_bytes(choice, kind);
  options.share_inputs = true;  // Session says where a graph begins
  options.type_traits = ggml_get_type_traits;
  const char* library = std::getenv("TOKENSPARSE_ONEDNN_LIBRARY");
  if (library != nullptr) options.library = library;
  auto server = ggml_adapter::LinearServer::create(options, why);
  if (choice.who != "auto" || server == nullptr || server->pays_off()) return server;
  why = server->description() + " is not known to be faster on this processor";
  return nullptr;
}

/// The first of them that is to be had.
void use(LinearChoice& choice, std::initializer_list<LinearKind> kinds, std::string& why) {
  choice.server.reset();
  for (const LinearKind kind : kinds) {
    if (choice.server != nullptr) break;
    choice.server = open(choice, kind, why);
    choice.kind = kind;
  }
  choice.description =
      choice.server != nullptr ? choice.server->description() : "ggml (" + why + ")";
}

const char* unquantised_name(llama_ftype weights) {
  switch (weights) {
    case LLAMA_FTYPE_ALL_F32:
      return "f32";
    case LLAMA_FTYPE_MOSTLY_F16:
      return "f16";
    case LLAMA_FTYPE_MOSTLY_BF16:
      return "bf16";
    default:
      return nullptr;
  }
}

}  // namespace

void add_linear_options(CLI::App& app, LinearChoice& choice) {
  app.add_option(
         "--linear", choice.who,
         "Who multiplies by the weights while the prompt is read: ggml; int8, with quantised\n"
         "weights and activations as 8-bit integers; bf16, with both rounded to that; onednn,\n"
         "the same by that library; auto: int8 where the processor has AMX, AVX512-VNNI or\n"
         "AVX-VNNI and the weights are quantised; else, if they are not f16 or f32, bf16 where it\n"
         "has AMX or AVX512-BF16, else onednn where it is there and faster")
      ->check(one_of({"auto", "ggml", "bf16", "onednn", "int8"}))
      ->type_name("auto|ggml|bf16|onednn|int8")
      ->capture_default_str();
  app.add_option("--linear-keep", choice.keep_mb,
                 "Megabytes for weights that stay as they are multiplied: 1.06 bytes a parameter\n"
                 "for int8, 2 for bf16 and onednn. Without it an eighth of the free memory for\n"
                 "int8, none for the others")
      ->check(between(0, 1 << 20));
}

void open_linear(LinearChoice& choice, int32_t threads) {
  choice.threads = threads;
  if (choice.who == "ggml") return;
  std::string why;
  if (choice.who == "int8") use(choice, {LinearKind::kInt8}, why);
  if (choice.who == "bf16") use(choice, {LinearKind::kBf16}, why);
  if (choice.who == "onednn") use(choice, {LinearKind::kOneDnn}, why);
  if (choice.who == "auto") {
    use(choice, {LinearKind::kInt8, LinearKind::kBf16, LinearKind::kOneDnn}, why);
  }
  if (choice.server == nullptr && choice.who != "auto") {
    throw Failure("--linear " + choice.who + ": " + why);
  }
}

void fit_linear_to_weights(LinearChoice& choice, llama_ftype weights) {
  const char* name = unquantised_name(weights);
  if (choice.server == nullptr || name == nullptr) return;
  if (choice.who == "int8") {
    throw Failure(std::string("--linear int8: the weights must be quantised, these are ") + name +
                  "; use bf16, onednn or ggml");
  }
  if (choice.who != "auto") return;
  std::string why;
  if (choice.kind == LinearKind::kInt8) {
    use(choice, {LinearKind::kBf16, LinearKind::kOneDnn}, why);
  }
  if (choice.server == nullptr) return;
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
