// SPDX-License-Identifier: MIT
#include "cli/llama/peak_memory.h"

#include <malloc.h>

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

}  // namespace tsp::cli
