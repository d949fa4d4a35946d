// SPDX-License-Identifier: MIT
// One function on n threads, on threads of our own or of the caller's pool.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "tokensparse/context.h"

namespace tsp {

class ThreadPool {
 public:
  /// Throws std::system_error or std::bad_alloc where the threads cannot be had.
  explicit ThreadPool(int32_t num_threads, tsp_parallel_fn parallel = nullptr,
                      void* parallel_user = nullptr);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int32_t size() const { return num_threads_; }
  /// Throws as the constructor does; the pool then has as many threads as before.
  void resize(int32_t num_threads);

  /// Calls fn(i) for every i < size() and returns when all have returned. An index may never run at
  /// the same time as another (a caller's pool may be serial), so fn must not wait for its
  /// siblings.
  template <typename Fn>
  void run(Fn&& fn) {
    run_erased([](void* arg, int32_t i) { (*static_cast<std::remove_reference_t<Fn>*>(arg))(i); },
               &fn);
  }

 private:
  void run_erased(void (*fn)(void*, int32_t), void* arg);
  void start_workers(int32_t num_threads);
  void stop_workers(int32_t num_threads);
  void worker(int32_t index, uint64_t seen);

  int32_t num_threads_ = 1;
  tsp_parallel_fn parallel_;
  void* parallel_user_;
  std::vector<std::thread> workers_;  // num_threads - 1 of our own, none with a caller's pool
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  void (*fn_)(void*, int32_t) = nullptr;
  void* arg_ = nullptr;
  uint64_t generation_ = 0;
  int32_t running_ = 0;
  int32_t staying_ = 1;  // workers of this index and above return
};

}  // namespace tsp
