// SPDX-License-Identifier: MIT
#include "cli/llama/openmp_threads.h"

#include <unistd.h>

#include <climits>
#include <cstdlib>

#include "cli/options.h"
#include "cli/verbs.h"

namespace tsp::cli {

namespace {

// ggml's threads wait for each other after every node. Left to spin as long as libgomp lets them,
// each takes the core from what it waits for where another process runs as well. Qwen2.5 0.5B, 640
// tokens, 2 threads, 2 cores AMD EPYC Zen 5, 2026-11-27; seconds to the first token and tokens/s,
// means of 2 or 3 alone, single runs beside others (and two at once on a machine with more to do):
//   spins     alone       beside a busy loop    two runs at once
//   default   0.65, 52.7  2.3, 15.9             7.9 and 15.6, 0.9 and 1.4
//   1,000     0.66, 50.3  1.5, 23.1; 2.2, 19.2  2.5 and 2.5, 11.4 and 11.6
//   none      0.76, 29.7  1.2, 37.0
constexpr const char* kSpins = "1000";

}  // namespace

void run_on_openmp(void*, int32_t num_threads, void (*fn)(void* arg, int32_t i), void* arg) {
#pragma omp parallel for num_threads(num_threads) schedule(static, 1)
  for (int32_t i = 0; i < num_threads; ++i) fn(arg, i);
}

void prepare_to_run_models(char** argv) {
  for (const char* set : {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}) {
    if (std::getenv(set) != nullptr) return;
  }
  char program[PATH_MAX];
  const ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
  if (length <= 0 || setenv("GOMP_SPINCOUNT", kSpins, 1) != 0) return;
  program[length] = '\0';
  execv(program, argv);
  // It goes on as it is where that fails.
}

tokensparse::Context open_on_openmp(const std::string& isa, int32_t threads) {
  tokensparse::ContextOptions options;
  options.num_threads = threads;
  options.isa = isa.empty() ? nullptr : isa.c_str();
  options.parallel = run_on_openmp;
  tokensparse::Context ctx;
  check(tokensparse::Context::create(options, &ctx));
  return ctx;
}

}  // namespace tsp::cli
