// SPDX-License-Identifier: MIT
// The program `tokensparse`: picks the verb, and turns every failure into one sentence on stderr
// and an exit code (1 failure, 2 usage). stdout carries results only.
#include <cstdio>
#include <exception>
#include <new>

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

int complain(const char* sentence, int exit_code) {
  std::fprintf(stderr, "tokensparse: %s\n", sentence);
  return exit_code;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace tsp::cli;
  CLI::App app(kDescription, "tokensparse");
  app.footer(kFooter);
  app.set_version_flag("--version", tsp_version());
  app.require_subcommand(1);
  app.get_formatter()->column_width(34);
  add_run(app);
  add_apply(app);
  add_profile(app);
  add_info(app);
  try {
    app.parse(argc, argv);
    if (std::fflush(stdout) != 0) return complain("cannot write to stdout", kExitFailure);
    return 0;
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    if (argc == 1) return complain("no verb given; `tokensparse --help` lists them", kExitUsage);
    return complain(error.what(), kExitUsage);
  } catch (const Failure& failure) {
    return complain(failure.what(), failure.exit_code);
  } catch (const std::bad_alloc&) {
    return complain("out of memory", kExitFailure);
  } catch (const std::exception& error) {
    return complain(error.what(), kExitFailure);
  }
}
