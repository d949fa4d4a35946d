// SPDX-License-Identifier: MIT
// A file that appears complete or not at all: written beside its final name, renamed at the end.
#pragma once

#include <csignal>
#include <cstddef>
#include <string>

namespace tsp::cli {

/// Throws Failure where the file cannot be written: no such folder, no permission, a full disk. A
/// file that was there before stays as it was until commit(). Ctrl-C waits while one is open.
class OutputFile {
 public:
  explicit OutputFile(const std::string& path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(const void* data, size_t bytes);
  /// On disk under its final name when this returns.
  void commit();

 private:
  [[noreturn]] void fail(const char* step) const;

  std::string path_;
  std::string temporary_;
  int descriptor_ = -1;
  sigset_t old_signals_;
};

}  // namespace tsp::cli
