// SPDX-License-Identifier: MIT
#include "cli/openmp_threads.h"

#include "cli/options.h"

namespace tsp::cli {

void run_on_openmp(void*, int32_t num_threads, void (*fn)(void* arg, int32_t i), void* arg) {
#pragma omp parallel for num_threads(num_threads) schedule(static, 1)
  for (int32_t i = 0; i < num_threads; ++i) fn(arg, i);
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
