// SPDX-License-Identifier: MIT
#include "cli/llama/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

namespace tsp::cli {
namespace {

size_t columns() {
  winsize size = {};
  const bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1;
  return known ? size.ws_col : 80;
}

}  // namespace

Progress::Progress(std::string task, int64_t total, bool enabled, const char* unit)
    : task_(std::move(task)),
      total_(total),
      enabled_(enabled && isatty(STDERR_FILENO) == 1),
      unit_(unit),
      start_(std::chrono::steady_clock::now()) {
  update(0);
}

void Progress::update(int64_t done) {
  if (!enabled_) return;
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start_;
  char text[256];
  std::snprintf(text, sizeof text, "%s: %lld of %lld %s (%lld %%), %.0f s", task_.c_str(),
                static_cast<long long>(done), static_cast<long long>(total_), unit_,
                static_cast<long long>(total_ > 0 ? 100 * done / total_ : 100), elapsed.count());
  std::string line(text);
  if (done > done_) {
    std::snprintf(text, sizeof text, ", the last %lld in %.1f s",
                  static_cast<long long>(done - done_), elapsed.count() - elapsed_);
    line += text;
  }
  done_ = done;
  elapsed_ = elapsed.count();
  line.resize(std::min(line.size(), columns() - 1));  // a longer one would not be wiped
  const size_t length = line.size();
  if (length < shown_) line.append(shown_ - length, ' ');
  shown_ = length;
  std::fprintf(stderr, "\r%s", line.c_str());
  std::fflush(stderr);
}

void Progress::finish() {
  if (shown_ > 0) std::fprintf(stderr, "\r%s\r", std::string(shown_, ' ').c_str());
  shown_ = 0;
}

}  // namespace tsp::cli
