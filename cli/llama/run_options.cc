// SPDX-License-Identifier: MIT
#include "cli/llama/run_options.h"

#include <CLI/CLI.hpp>

#include "cli/options.h"

namespace tsp::cli {

void add_run_conditions(CLI::App& app, RunConditions& conditions, int32_t& threads) {
  app.add_option("-c,--ctx", conditions.context,
                 "Context in tokens; what prompt and answer need if not given")
      ->check(between(1, 1 << 30));
  app.add_option("--ubatch,--chunk", conditions.ubatch,
                 "Prompt tokens that go through the layers at once; each such chunk chooses anew.\n"
                 "Without it 2048, and 8192 from the 16384th token on")
      ->check(between(64, 1 << 20));
  app.add_option("--isa", conditions.isa,
                 "CPU instruction set: scalar, avx2, avx512, ...; the best one if not given")
      ->group("Where it runs");
  app.add_option("--threads", threads, "CPU threads; 0 = all this process may use")
      ->check(between(0, 1024))
      ->default_str("0")
      ->group("Where it runs");
}

CLI::Option* add_chat_template(CLI::App& app, std::string& chat_template) {
  return app
      .add_option(
          "--chat-template", chat_template,
          "How a prompt becomes a user's turn: model, by the template in the model file; none;\n"
          "the name of one that llama.cpp has built in; or a file with one")
      ->type_name("NAME|FILE|none")
      ->capture_default_str();
}

}  // namespace tsp::cli
