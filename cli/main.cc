// SPDX-License-Identifier: MIT
// The program `tokensparse`: picks the verb, and turns every failure into one sentence on stderr
// and an exit code (1 failure, 2 usage). stdout carries results only.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <memory>
#include <new>
#include <string>

#include "cli/usage_error.h"
#include "cli/verbs.h"
#include "tokensparse/tokensparse.h"

namespace {

constexpr const char* kDescription =
    "Token Sparse Attention: a shorter prefill for long prompts.\n"
    "\n"
    "In each sparse layer the prompt's last queries vote which tokens matter; attention runs on\n"
    "those alone and the result is put back in place. Decoding stays exact.";

constexpr const char* kFooter =
    "Start here:\n"
    "  tokensparse info                      what this build and this machine can do\n"
    "  tokensparse run -m MODEL.gguf -f TEXT -p QUESTION --compare\n"
    "                                        a question about a long text, dense and sparse\n"
    "  tokensparse apply IN.safetensors --out OUT.safetensors\n"
    "                                        the operator alone, on your q, k and v\n"
    "  tokensparse VERB --help               all options of a verb, with their defaults\n"
    "\n"
    "Exit codes: 0 done, 1 failed, 2 wrong command line. Errors are one sentence on stderr.";

/// Shows "--window INT [128]" where CLI11 shows "--window INT=128".
class HelpFormatter : public CLI::Formatter {
 public:
  HelpFormatter() { column_width(34); }
  std::string make_option_opts(const CLI::Option* option) const override {
    if (option->get_type_size() == 0) return "";
    std::string text = option->get_type_name().empty() ? "" : " " + option->get_type_name();
    if (!option->get_default_str().empty()) text += " [" + option->get_default_str() + "]";
    return option->get_required() ? text + " (required)" : text;
  }
};

int complain(const char* sentence, int exit_code) {
  std::fprintf(stderr, "tokensparse: %s\n", sentence);
  return exit_code;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace tsp::cli;
  for (const std::string verb : {"run", "profile", "eval"}) {
    if (argc > 1 && argv[1] == verb) prepare_to_run_models(argv);
  }
  CLI::App app(kDescription, "tokensparse");
  app.footer(kFooter);
  app.set_version_flag("--version", tsp_version());
  app.require_subcommand(1);
  app.formatter(std::make_shared<HelpFormatter>());
  add_run(app);
  add_apply(app);
  add_eval(app);
  add_profile(app);
  add_bench(app);
  add_info(app);
  add_plugin_path(app);
  add_documents(app);
  try {
    app.parse(argc, argv);
    if (std::fflush(stdout) != 0) return complain("cannot write to stdout", kExitFailure);
    return 0;
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    if (app.get_subcommands().empty()) {
      const bool unknown = argc > 1 && argv[1][0] != '-';
      const std::string what = unknown ? "no verb named " + std::string(argv[1]) : "no verb given";
      return complain((what + "; `tokensparse --help` lists them").c_str(), kExitUsage);
    }
    const CLI::App* verb = app.get_subcommands().front();
    while (!verb->get_subcommands().empty()) verb = verb->get_subcommands().front();
    if (verb->get_require_subcommand_min() > verb->get_subcommands().size()) {
      return complain(("what to " + verb->get_name() + " is not given; `tokensparse " +
                       verb->get_name() + " --help` lists it")
                          .c_str(),
                      kExitUsage);
    }
    return complain(usage_sentence(error, *verb).c_str(), kExitUsage);
  } catch (const Failure& failure) {
    return complain(failure.what(), failure.exit_code);
  } catch (const std::bad_alloc&) {
    return complain("out of memory", kExitFailure);
  } catch (const std::exception& error) {
    return complain(error.what(), kExitFailure);
  }
}
