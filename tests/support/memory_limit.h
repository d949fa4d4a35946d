// SPDX-License-Identifier: MIT
// A process that can have few more threads: their stacks find no room in its address space.
#pragma once

#include <sys/resource.h>

#include <fstream>

namespace tsp::test {

class MemoryLimit {
 public:
  MemoryLimit() {
    getrlimit(RLIMIT_AS, &before_);
    rlimit lower = before_;
    uint64_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    lower.rlim_cur = pages * 4096 + (uint64_t{100} << 20);
    works_ = pages > 0 && !sanitized() && setrlimit(RLIMIT_AS, &lower) == 0;
  }
  ~MemoryLimit() { setrlimit(RLIMIT_AS, &before_); }
  MemoryLimit(const MemoryLimit&) = delete;
  MemoryLimit& operator=(const MemoryLimit&) = delete;

  bool works() const { return works_; }

 private:
  // Sanitizers end the process where they get no memory.
  static constexpr bool sanitized() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    return true;
#else
    return false;
#endif
  }

  rlimit before_;
  bool works_;
};

}  // namespace tsp::test
