// SPDX-License-Identifier: MIT
// Work shared by threads of its own.
#pragma once

#include <cstdint>
#include <thread>
#include <vector>

namespace tsp::test {

/// LinearOptions::parallel.
inline void run_on_threads(void*, int32_t num_threads, void (*fn)(void* arg, int32_t i),
                           void* arg) {
  std::vector<std::thread> threads;
  for (int32_t i = 0; i < num_threads; ++i) threads.emplace_back(fn, arg, i);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace tsp::test
