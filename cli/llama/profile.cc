// SPDX-License-Identifier: MIT
// `tokensparse profile`: the drift of a model's layers, and which of them may be sparse.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "cli/llama/interrupt.h"
#include "cli/llama/layer_profile.h"
#include "cli/options.h"
#include "cli/output_file.h"
#include "cli/verbs.h"

namespace tsp::cli {
namespace {

struct ProfileOptions {
  std::string model, text, out;
  int32_t threads = 0;
  bool json = false, verbose = false;
};

void print_table(const LayerProfile& profile, const std::string& path) {
  std::printf("drift per layer, mean over %d tokens: |h_out - h_in| / |h_in|\n", profile.tokens);
  size_t next = 0;
  for (size_t layer = 0; layer < profile.drift.size(); ++layer) {
    const bool sparse = next < profile.sparse_layers.size() &&
                        static_cast<size_t>(profile.sparse_layers[next]) == layer;
    next += sparse;
    const char* what = sparse ? "  sparse" : "";
    if (!profile.can_be_sparse[layer]) what = "  does not attend to the whole prompt";
    if (profile.drift[layer] < 0) {
      std::printf("%5zu       -%s\n", layer, what);
    } else {
      std::printf("%5zu  %6.3f%s\n", layer, profile.drift[layer], what);
    }
  }
  std::printf("%zu of %zu layers may leave tokens out; written to %s\n",
              profile.sparse_layers.size(), profile.drift.size(), path.c_str());
}

void profile(const ProfileOptions& options) {
  const CatchInterrupt catch_interrupt;
  const std::string text =
      options.text.empty() ? default_profile_text() : read_text_start(options.text, kProfileBytes);
  if (text.empty()) throw Failure("no text to read: name one with -f", kExitUsage);
  const std::string path = options.out.empty() ? profile_path(options.model) : options.out;
  {
    const OutputFile writable(path, {options.model, options.text});
  }  // says so before the work, not after
  const Model model(options.model, options.verbose);
  const tokensparse::Context ctx = open_context({TSP_BACKEND_CPU, "", options.threads});
  const LayerProfile result = measure_profile(model, text, ctx.threads(), !options.json);
  write_profile(result, model, path);
  if (options.json) {
    std::fputs(to_json(result, model).c_str(), stdout);
  } else {
    print_table(result, path);
  }
}

}  // namespace

void add_profile(CLI::App& app) {
  CLI::App* verb = app.add_subcommand(
      "profile",
      "Measure how much each layer of a model changes its input, and choose the layers\n"
      "that change it least: the lower half of those that attend to the whole prompt, never\n"
      "the first or the last. For `run --profile` and `--setting FILE`; the built-in setting\n"
      "needs no profile");
  const auto options = std::make_shared<ProfileOptions>();
  verb->add_option("-m,--model", options->model, "The model, a GGUF file")->required();
  verb->add_option("-f,--file", options->text,
                   "Text to read; its first 4096 tokens count, more under a long sliding window. A "
                   "licence of the system if not given");
  verb->add_option("-o,--out", options->out,
                   "The JSON file to write; beside the model, where `run` finds it, if not given");
  verb->add_option("--threads", options->threads, "CPU threads; 0 = all that this process may use")
      ->check(between(0, 1024))
      ->default_str("0");
  verb->add_flag("--json", options->json, "Print the JSON as well, and nothing else");
  verb->add_flag("--verbose", options->verbose, "Let llama.cpp's log through to stderr");
  verb->callback([options] { profile(*options); });
}

}  // namespace tsp::cli
