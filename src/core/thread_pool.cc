// SPDX-License-Identifier: MIT
#include "core/thread_pool.h"

namespace tsp {

ThreadPool::ThreadPool(int32_t num_threads, tsp_parallel_fn parallel, void* parallel_user)
    : num_threads_(num_threads), parallel_(parallel), parallel_user_(parallel_user) {
  start();
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::resize(int32_t num_threads) {
  if (num_threads == num_threads_) return;
  stop();
  num_threads_ = num_threads;
  start();
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

void ThreadPool::start() {
  if (parallel_ != nullptr) return;
  workers_.reserve(static_cast<size_t>(num_threads_ - 1));
  for (int32_t i = 1; i < num_threads_; ++i) workers_.emplace_back([this, i] { worker(i); });
}

void ThreadPool::stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : workers_) thread.join();
  workers_.clear();
  stopping_ = false;
  generation_ = 0;
}

void ThreadPool::worker(int32_t index) {
  uint64_t seen = 0;
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [&] { return stopping_ || generation_ != seen; });
    if (stopping_) return;
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
