// SPDX-License-Identifier: MIT
// The verbs of the program: one add_*() each, in a file of the same name. It declares the verb's
// options on the app and leaves the work in the callback, which returns or throws Failure.
#pragma once

#include <stdexcept>
#include <string>

namespace CLI {
class App;  // <CLI/CLI.hpp> costs seconds a file: only verbs include it
}

namespace tsp::cli {

inline constexpr int kExitFailure = 1;  // the work failed: a file, a model, the machine
inline constexpr int kExitUsage = 2;    // the command line is wrong

/// One sentence that names what is wrong, the rule and the value. main() prints it to stderr behind
/// "tokensparse: " and exits with the code. Everything half-done is undone by destructors.
struct Failure : std::runtime_error {
  explicit Failure(const std::string& sentence, int code = kExitFailure)
      : std::runtime_error(sentence), exit_code(code) {}
  int exit_code;
};

void add_apply(CLI::App& app);
void add_bench(CLI::App& app);
void add_documents(CLI::App& app);
void add_info(CLI::App& app);
void add_plugin_path(CLI::App& app);

// With llama.cpp: the files of llama/. Without: no_llama.cc, which says how to get them.
void add_run(CLI::App& app);
void add_eval(CLI::App& app);
void add_profile(CLI::App& app);

/// Before a verb that runs models: starts the program anew with a bound on how long OpenMP's
/// threads spin where they wait, unless the environment has one, since OpenMP reads it before
/// main().
void prepare_to_run_models(char** argv);

/// Which llama.cpp this program runs models with ("llama.cpp 0.5.0, ggml 0.25.3"), for `info`; null
/// in a build without it.
const char* llama_description();

}  // namespace tsp::cli
