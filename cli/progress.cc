// SPDX-License-Identifier: MIT
#include "cli/progress.h"

#include <unistd.h>

#include <cstdio>
#include <utility>

namespace tsp::cli {

Progress::Progress(std::string task, int64_t total, bool enabled, const char* unit)
    : task_(std::move(task)),
      total_(total),
      enabled_(enabled && isatty(STDERR_FILENO) == 1),
      unit_(unit),
      start_(std::chrono::steady_clock::now()) {
  update(0);
}

Progress::~Progress() {
  if (enabled_) std::fputs("\r\033[K", stderr);
}

void Progress::update(int64_t done) {
  if (!enabled_) return;
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start_;
  std::fprintf(stderr, "\r\033[K%s: %lld of %lld %s (%lld %%), %.0f s", task_.c_str(),
               static_cast<long long>(done), static_cast<long long>(total_), unit_,
               static_cast<long long>(total_ > 0 ? 100 * done / total_ : 100), elapsed.count());
  std::fflush(stderr);
}

}  // namespace tsp::cli
