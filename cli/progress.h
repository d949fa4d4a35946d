// SPDX-License-Identifier: MIT
// One line on stderr that says how far long work is; nothing where stderr is not a terminal.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace tsp::cli {

class Progress {
 public:
  /// `task` opens the line: "sparse: reading the prompt". `enabled` false keeps it silent; `unit`
  /// is what is counted.
  Progress(std::string task, int64_t total, bool enabled, const char* unit = "tokens");
  ~Progress();  // wipes the line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void update(int64_t done);

 private:
  std::string task_;
  int64_t total_;
  bool enabled_;
  const char* unit_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace tsp::cli
