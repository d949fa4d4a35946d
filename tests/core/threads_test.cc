// SPDX-License-Identifier: MIT
// Threads: contexts side by side, pools that change size, a caller's own pool, errors per thread.
// Small problems, many calls: made for the thread sanitizer.
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/memory_limit.h"
#include "tokensparse/tokensparse.hpp"

namespace {

constexpr int64_t kTokens = 96, kHeads = 4, kKvHeads = 2, kDim = 16;

std::vector<float> random_floats(int64_t count, uint32_t seed) {
  std::minstd_rand random(seed);
  std::uniform_real_distribution<float> uniform(-2.0f, 2.0f);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = uniform(random);
  return values;
}

/// Inputs that leave tokens out, so that every operation takes part.
struct Problem {
  std::vector<float> q = random_floats(kTokens * kHeads * kDim, 1);
  std::vector<float> k = random_floats(kTokens * kKvHeads * kDim, 2);
  std::vector<float> v = random_floats(kTokens * kKvHeads * kDim, 3);

  std::vector<float> solve(tokensparse::Context& context) const {
    std::vector<float> out(q.size(), -1.0f);
    tokensparse::PrefillParams params;
    params.coverage = 0.3f;
    params.window = 8;
    params.min_tokens = 4;
    params.dropped = TSP_DROPPED_LOCAL;
    params.band = 5;
    params.q = tokensparse::view(q.data(), kTokens, kHeads, kDim);
    params.k = tokensparse::view(k.data(), kTokens, kKvHeads, kDim);
    params.v = tokensparse::view(v.data(), kTokens, kKvHeads, kDim);
    params.out = tokensparse::view(out.data(), kTokens, kHeads, kDim);
    int32_t kept = 0;
    params.selected.kept = &kept;
    const tokensparse::Status status = tokensparse::prefill(context, params);
    EXPECT_TRUE(status.ok()) << status.message();
    EXPECT_LT(kept, kTokens);
    return out;
  }
};

tokensparse::Context context_of(int32_t threads, tsp_parallel_fn parallel = nullptr) {
  tokensparse::ContextOptions options;
  options.num_threads = threads;
  options.parallel = parallel;
  tokensparse::Context context;
  const tokensparse::Status status = tokensparse::Context::create(options, &context);
  EXPECT_TRUE(status.ok()) << status.message();
  return context;
}

TEST(Threads, ContextsWorkSideBySide) {
  const Problem problem;
  tokensparse::Context alone = context_of(1);
  const std::vector<float> expected = problem.solve(alone);
  std::vector<std::thread> users;
  for (int32_t user = 0; user < 3; ++user) {
    users.emplace_back([&problem, &expected, user] {
      tokensparse::Context context = context_of(user + 1);
      for (int i = 0; i < 20; ++i) EXPECT_EQ(problem.solve(context), expected);
    });
  }
  for (std::thread& user : users) user.join();
}

TEST(Threads, APoolThatChangesSizeGivesTheSameBits) {
  const Problem problem;
  tokensparse::Context context = context_of(1);
  const std::vector<float> expected = problem.solve(context);
  for (const int32_t threads : {4, 2, 2, 7, 1, 3}) {
    ASSERT_EQ(tsp_context_set_threads(context.get(), threads), TSP_OK);
    EXPECT_EQ(context.threads(), threads);
    for (int i = 0; i < 5; ++i) EXPECT_EQ(problem.solve(context), expected);
  }
}

TEST(Threads, TheNumberStaysWhatItWasWhereTheSystemRefusesMore) {
  const Problem problem;
  tokensparse::Context context = context_of(3);
  const std::vector<float> expected = problem.solve(context);
  {
    const tsp::test::MemoryLimit limit;
    if (!limit.works()) GTEST_SKIP() << "memory cannot be limited here";
    EXPECT_EQ(tsp_context_set_threads(context.get(), 1024), TSP_OUT_OF_MEMORY);
    EXPECT_EQ(std::string(tsp_last_error()).find("num_threads: could not start 1024 threads: "),
              0u);
    tokensparse::ContextOptions options;
    options.num_threads = 1024;
    tokensparse::Context another;
    EXPECT_EQ(tokensparse::Context::create(options, &another).code(), TSP_OUT_OF_MEMORY);
    EXPECT_EQ(std::string(tsp_last_error()).find("num_threads: could not start 1024 threads: "),
              0u);
    EXPECT_EQ(context.threads(), 3);
    EXPECT_EQ(problem.solve(context), expected);
  }
  ASSERT_EQ(tsp_context_set_threads(context.get(), 5), TSP_OK);
  EXPECT_EQ(problem.solve(context), expected);
}

TEST(Threads, ACallersPoolMayRunIndicesAnywhereAndInAnyOrder) {
  const tsp_parallel_fn at_once = [](void*, int32_t count, void (*fn)(void*, int32_t), void* arg) {
    std::vector<std::thread> threads;
    for (int32_t i = 0; i < count; ++i) threads.emplace_back(fn, arg, i);
    for (std::thread& thread : threads) thread.join();
  };
  const tsp_parallel_fn backwards = [](void*, int32_t count, void (*fn)(void*, int32_t),
                                       void* arg) {
    for (int32_t i = count - 1; i >= 0; --i) fn(arg, i);
  };
  const Problem problem;
  tokensparse::Context alone = context_of(1);
  const std::vector<float> expected = problem.solve(alone);
  for (const tsp_parallel_fn parallel : {at_once, backwards}) {
    tokensparse::Context context = context_of(4, parallel);
    EXPECT_EQ(problem.solve(context), expected);
  }
}

TEST(Threads, ContextsComeAndGo) {
  const Problem problem;
  for (int i = 0; i < 30; ++i) {
    tokensparse::Context context = context_of(1 + i % 4);
    if (i % 2 == 0) problem.solve(context);
  }
}

TEST(Threads, EachThreadHasItsOwnLastError) {
  std::vector<std::thread> users;
  for (int32_t user = 0; user < 3; ++user) {
    users.emplace_back([user] {
      const std::string isa = "no-such-isa-" + std::to_string(user);
      for (int i = 0; i < 50; ++i) {
        tokensparse::ContextOptions options;
        options.isa = isa.c_str();
        tokensparse::Context context;
        const tokensparse::Status status = tokensparse::Context::create(options, &context);
        EXPECT_FALSE(status.ok());
        EXPECT_NE(status.message().find(isa), std::string::npos) << status.message();
      }
    });
  }
  for (std::thread& user : users) user.join();
}

}  // namespace
