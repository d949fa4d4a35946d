// SPDX-License-Identifier: MIT
#include "cli/llama/peak_memory.h"

#include <malloc.h>

#include <algorithm>
#include <fstream>
#include <string>

namespace tsp::cli {

void reset_peak_memory() {
  malloc_trim(0);  // what was freed before would count
  std::ofstream("/proc/self/clear_refs") << "5";
}

int64_t peak_memory() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    int64_t kilobytes = 0;
    if (word == "VmHWM:" && status >> kilobytes) return 1024 * kilobytes;
  }
  return 0;
}

int64_t available_memory() {
  int64_t available = 0;
  std::ifstream info("/proc/meminfo");
  for (std::string word; info >> word;) {
    int64_t kilobytes = 0;
    if (word == "MemAvailable:" && info >> kilobytes) available = 1024 * kilobytes;
  }
  int64_t limit = 0, used = 0;  // of a container; a machine's own group has no limit
  std::ifstream most("/sys/fs/cgroup/memory.max"), now("/sys/fs/cgroup/memory.current");
  if (most >> limit && now >> used) available = std::clamp<int64_t>(limit - used, 0, available);
  return available;
}

}  // namespace tsp::cli
