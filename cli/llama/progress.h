// SPDX-License-Identifier: MIT
// One line on stderr that says how far long work is; nothing where stderr is not a terminal.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>

namespace tsp::cli {

class Progress {
 public:
  /// `task` opens the line: "sparse: reading the prompt". `enabled` false keeps it silent; `unit`
  /// is what is counted.
  Progress(std::string task, int64_t total, bool enabled, const char* unit = "tokens");
  ~Progress() { finish(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void update(int64_t done);
  /// Wipes the line.
  void finish();

 private:
  std::string task_;
  int64_t total_;
  bool enabled_;
  const char* unit_;
  size_t shown_ = 0;    // characters of the line
  int64_t done_ = 0;    // at the last update ...
  double elapsed_ = 0;  // ... and when that was
  std::chrono::steady_clock::time_point start_;
};

}  // namespace tsp::cli
