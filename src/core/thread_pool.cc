// SPDX-License-Identifier: MIT
#include "core/thread_pool.h"

namespace tsp {

ThreadPool::ThreadPool(int32_t num_threads, tsp_parallel_fn parallel, void* parallel_user)
    : parallel_(parallel), parallel_user_(parallel_user) {
  resize(num_threads);
}

ThreadPool::~ThreadPool() { stop_workers(1); }

void ThreadPool::resize(int32_t num_threads) {
  if (parallel_ == nullptr && num_threads > num_threads_) start_workers(num_threads);
  if (parallel_ == nullptr && num_threads < num_threads_) stop_workers(num_threads);
  num_threads_ = num_threads;
}

void ThreadPool::run_erased(void (*fn)(void*, int32_t), void* arg) {
  if (parallel_ != nullptr) {
    parallel_(parallel_user_, num_threads_, fn, arg);
    return;
  }
  if (num_threads_ == 1) {
    fn(arg, 0);
    return;
  }
  {
    std::lock_guard lock(mutex_);
    fn_ = fn;
    arg_ = arg;
    running_ = num_threads_ - 1;
    ++generation_;
  }
  wake_.notify_all();
  fn(arg, 0);
  std::unique_lock lock(mutex_);
  done_.wait(lock, [&] { return running_ == 0; });
}

/// Beside those there are, so that a limit of the system leaves the pool as it was.
void ThreadPool::start_workers(int32_t num_threads) {
  workers_.reserve(static_cast<size_t>(num_threads - 1));
  {
    std::lock_guard lock(mutex_);
    staying_ = num_threads;
  }
  try {
    for (int32_t i = num_threads_; i < num_threads; ++i) {
      workers_.emplace_back([this, i, seen = generation_] { worker(i, seen); });
    }
  } catch (...) {
    stop_workers(num_threads_);
    throw;
  }
}

void ThreadPool::stop_workers(int32_t num_threads) {
  {
    std::lock_guard lock(mutex_);
    staying_ = num_threads;
  }
  wake_.notify_all();
  while (workers_.size() > static_cast<size_t>(num_threads - 1)) {
    workers_.back().join();
    workers_.pop_back();
  }
}

/// `seen`: the generation of the last run before it was started.
void ThreadPool::worker(int32_t index, uint64_t seen) {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [&] { return index >= staying_ || generation_ != seen; });
    if (index >= staying_) return;
    seen = generation_;
    const auto fn = fn_;
    void* const arg = arg_;
    lock.unlock();
    fn(arg, index);
    lock.lock();
    if (--running_ == 0) done_.notify_one();
  }
}

}  // namespace tsp
