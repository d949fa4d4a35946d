// SPDX-License-Identifier: MIT
// `tokensparse completion` and `tokensparse manual`: the command line as files of other programs.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "cli/option_table.h"
#include "cli/options.h"
#include "cli/verbs.h"

namespace tsp::cli {

void add_documents(CLI::App& app) {
  CLI::App* completion = app.add_subcommand(
      "completion", "Completion for a shell, on stdout: source <(tokensparse completion bash)");
  const auto shell = std::make_shared<int32_t>(0);
  add_choice(*completion, "SHELL", *shell, shells(), "The shell")->required()->default_str("");
  completion->callback([&app, shell] {
    const std::string& name = shells().at(static_cast<size_t>(*shell));
    std::fputs(completion_script(app, name).c_str(), stdout);
  });
  CLI::App* manual =
      app.add_subcommand("manual", "The manual page, on stdout: tokensparse manual | man -l -");
  manual->callback([&app] { std::fputs(manual_page(app).c_str(), stdout); });
}

}  // namespace tsp::cli
