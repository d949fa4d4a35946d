// SPDX-License-Identifier: MIT
// A process that can have few more threads: their stacks find no room in its address space.
#pragma once

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <fstream>

namespace tsp::test {

class MemoryLimit {
 public:
  MemoryLimit() {
    getrlimit(RLIMIT_AS, &before_);
    rlimit lower = before_;
    uint64_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    lower.rlim_cur = pages * static_cast<uint64_t>(sysconf(_SC_PAGESIZE)) + kRoom;
    works_ = pages > 0 && !sanitized() && setrlimit(RLIMIT_AS, &lower) == 0 && holds();
  }
  ~MemoryLimit() { setrlimit(RLIMIT_AS, &before_); }
  MemoryLimit(const MemoryLimit&) = delete;
  MemoryLimit& operator=(const MemoryLimit&) = delete;

  bool works() const { return works_; }

 private:
  static constexpr uint64_t kRoom = uint64_t{100} << 20;

  // Sanitizers end the process where they get no memory.
  static constexpr bool sanitized() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    return true;
#else
    return false;
#endif
  }
  // qemu-user accepts a limit and does not keep it, as it would bind qemu itself.
  static bool holds() {
    void* const more = mmap(nullptr, 2 * kRoom, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (more == MAP_FAILED) return true;
    munmap(more, 2 * kRoom);
    return false;
  }

  rlimit before_;
  bool works_;
};

}  // namespace tsp::test
