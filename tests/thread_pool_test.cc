// SPDX-License-Identifier: MIT
// The thread pool: every index once per run, any number of runs, resizing, a caller's pool.
#include "core/thread_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <system_error>

#include "tests/support/memory_limit.h"

namespace tsp {
namespace {

TEST(ThreadPool, RunsEveryIndexOnce) {
  for (const int32_t num_threads : {1, 2, 3, 8}) {
    ThreadPool pool(num_threads);
    std::vector<std::atomic<int>> runs(static_cast<size_t>(num_threads));
    for (int repeat = 0; repeat < 500; ++repeat) {
      pool.run([&](int32_t i) { ++runs[static_cast<size_t>(i)]; });
    }
    for (const auto& count : runs) EXPECT_EQ(count, 500);
  }
}

TEST(ThreadPool, WritesOfARunAreSeenAfterIt) {
  ThreadPool pool(4);
  std::vector<int> values(4);  // not atomic: the pool must order the writes
  for (int repeat = 1; repeat < 300; ++repeat) {
    pool.run([&](int32_t i) { values[static_cast<size_t>(i)] += 1; });
    for (const int value : values) ASSERT_EQ(value, repeat);
  }
}

TEST(ThreadPool, Resizes) {
  ThreadPool pool(2);
  for (const int32_t num_threads : {5, 1, 3}) {
    pool.resize(num_threads);
    std::atomic<int32_t> sum = 0;
    pool.run([&](int32_t i) { sum += i + 1; });
    EXPECT_EQ(sum, num_threads * (num_threads + 1) / 2);
  }
}

TEST(ThreadPool, WorkersThatComeLateTakePartInTheNextRunOnly) {
  ThreadPool pool(2);
  std::vector<int> runs(8);
  for (int repeat = 0; repeat < 50; ++repeat) {
    for (const int32_t num_threads : {2, 8, 5}) {
      pool.resize(num_threads);
      std::fill(runs.begin(), runs.end(), 0);
      pool.run([&](int32_t i) { ++runs[static_cast<size_t>(i)]; });
      for (int32_t i = 0; i < 8; ++i) {
        ASSERT_EQ(runs[static_cast<size_t>(i)], i < num_threads) << num_threads;
      }
    }
  }
}

TEST(ThreadPool, StaysAsItWasWhereTheSystemRefusesThreads) {
  ThreadPool pool(3);
  {
    const test::MemoryLimit limit;
    if (!limit.works()) GTEST_SKIP() << "memory cannot be limited here";
    EXPECT_THROW(pool.resize(1024), std::system_error);
    EXPECT_THROW(ThreadPool(1024), std::system_error);
  }
  EXPECT_EQ(pool.size(), 3);
  for (int repeat = 0; repeat < 100; ++repeat) {
    std::atomic<int32_t> sum = 0;
    pool.run([&](int32_t i) { sum += i + 1; });
    EXPECT_EQ(sum, 6);
  }
  pool.resize(5);
  std::atomic<int32_t> sum = 0;
  pool.run([&](int32_t i) { sum += i + 1; });
  EXPECT_EQ(sum, 15);
}

TEST(ThreadPool, UsesACallersPool) {
  int calls = 0;
  ThreadPool pool(
      3,
      [](void* user, int32_t n, void (*fn)(void*, int32_t), void* arg) {
        ++*static_cast<int*>(user);
        for (int32_t i = 0; i < n; ++i) fn(arg, i);
      },
      &calls);
  std::vector<int32_t> order;
  pool.run([&](int32_t i) { order.push_back(i); });
  EXPECT_EQ(order, (std::vector<int32_t>{0, 1, 2}));
  EXPECT_EQ(calls, 1);
}

}  // namespace
}  // namespace tsp
