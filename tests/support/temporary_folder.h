// SPDX-License-Identifier: MIT
// A folder of a test's own, gone with everything in it when the test is over.
#pragma once

#include <stdlib.h>

#include <filesystem>
#include <stdexcept>
#include <string>

namespace tsp::test {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    // mkdtemp() replaces the six last characters, which it wants to be just these.
    std::string name =
        (std::filesystem::temp_directory_path() / "tokensparse-").string() + std::string(6, 'X');
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error(name + ": cannot be made");
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace tsp::test
