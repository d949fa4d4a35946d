// SPDX-License-Identifier: MIT
// A file that appears complete or not at all: written beside its final name, renamed at the end.
#pragma once

#include <csignal>
#include <cstddef>
#include <string>
#include <vector>

namespace tsp::cli {

/// Throws Failure where the file cannot be written: no such folder, no permission, a full disk, or
/// it is one of `inputs` under whatever name. A file that was there before stays as it was until
/// commit(); a link to one stays a link. Ctrl-C waits while one is open.
class OutputFile {
 public:
  explicit OutputFile(const std::string& path, const std::vector<std::string>& inputs = {});
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(const void* data, size_t bytes);
  /// On disk under its final name when this returns.
  void commit();

 private:
  [[noreturn]] void fail(const char* step) const;

  void open_temporary();

  std::string path_;    // as it was named
  std::string target_;  // what that leads to
  std::string temporary_;
  int descriptor_ = -1;
  sigset_t old_signals_;
};

}  // namespace tsp::cli
