// SPDX-License-Identifier: MIT
// `run`, `eval` and `profile` of a build without llama.cpp: they exist, and say what is missing.
#include <CLI/CLI.hpp>

#include "cli/verbs.h"

namespace tsp::cli {
namespace {

void add_missing(CLI::App& app, const std::string& name, const std::string& description) {
  CLI::App* verb = app.add_subcommand(name, description + " (not in this build: no llama.cpp)");
  verb->allow_extras();
  verb->callback([name] {
    throw Failure("`" + name +
                  "` needs llama.cpp, which this build was made without; scripts/demo builds with "
                  "it, as does cmake -DTOKENSPARSE_LLAMA_CPP_DIR=SOURCE_OF_LLAMA_CPP");
  });
}

}  // namespace

void add_run(CLI::App& app) { add_missing(app, "run", "Answer a question about a long text"); }
void add_eval(CLI::App& app) { add_missing(app, "eval", "Answers of many prompts as JSON lines"); }
void add_profile(CLI::App& app) { add_missing(app, "profile", "Find a model's sparse layers"); }
void prepare_to_run_models(char**) {}
const char* llama_description() { return nullptr; }

}  // namespace tsp::cli
