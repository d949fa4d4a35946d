// SPDX-License-Identifier: MIT
// Items that threads take one after the other, on threads that are lent.
#pragma once

#include <atomic>
#include <cstdint>

#include "tokensparse/context.h"

namespace tsp::ggml_adapter {

struct Threads {
  int32_t count = 1;
  tsp_parallel_fn parallel = nullptr;  // null: the calling one alone
  void* user = nullptr;
};

/// body(i) for each i in [0, count), whatever the number of threads that come.
template <class Body>
void for_each_item(const Threads& threads, int64_t count, const Body& body) {
  struct Work {
    std::atomic<int64_t> next{0};
    int64_t count;
    const Body& body;
  } work{{}, count, body};
  const auto take = [](void* arg, int32_t) {
    auto& shared = *static_cast<Work*>(arg);
    for (int64_t i = shared.next++; i < shared.count; i = shared.next++) shared.body(i);
  };
  if (threads.parallel == nullptr || threads.count == 1) {
    take(&work, 0);
  } else {
    threads.parallel(threads.user, threads.count, take, &work);
  }
}

}  // namespace tsp::ggml_adapter
