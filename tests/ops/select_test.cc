// SPDX-License-Identifier: MIT
// tsp_select(): the same sets as the reference, bit for bit, and what any set must be.
#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/support/op_test.h"

namespace tsp::test {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class Select : public OpTest {
 protected:
  const Backend ref = all_backends().front();
  tokensparse::Context ref_ctx = ref.open();

  /// Scores with the spread of real ones: a few tokens hold most of the mass.
  static Tensor spread_scores(const Problem& problem, const Options& options, uint32_t seed,
                              float spread) {
    Tensor scores(TSP_F32, {static_cast<int32_t>(problem.prefix_total(options.window))},
                  problem.shape.num_q_heads, 1, Layout::kHeadMajor);
    scores.randomise(seed, spread);
    const auto total = static_cast<float>(scores.tokens());
    for (int64_t t = 0; t < scores.tokens(); ++t) {
      for (int64_t h = 0; h < scores.view().heads; ++h) {
        scores.set(t, h, 0, std::min(1.0f, std::exp(scores.at(t, h)) / total));
      }
    }
    return scores;
  }
  void expect_as_ref(Problem& problem, Tensor& scores, const Options& options) {
    EXPECT_EQ(problem.select(ref, ref_ctx, scores, options),
              problem.select(backend, ctx, scores, options))
        << problem.shape.name() << ", coverage " << options.coverage << ", keep " << options.keep
        << ", share " << options.share << ", min_tokens " << options.min_tokens;
  }
};

TEST_P(Select, HandComputedExample) {
  // 8 prefix tokens, 2 heads, window 2. Head sums: .02 .30 .04 .50 .06 .40 .08 .60, total 2.00.
  const Shape shape = {.q_lens = {2}, .k_lens = {10}, .num_q_heads = 2, .num_kv_heads = 1};
  Problem problem(shape);
  Tensor scores(TSP_F32, {8}, 2, 1, Layout::kHeadMajor);
  const float sums[] = {.02f, .30f, .04f, .50f, .06f, .40f, .08f, .60f};
  for (int t = 0; t < 8; ++t) {
    scores.set(t, 0, 0, sums[t] * 0.75f);
    scores.set(t, 1, 0, sums[t] * 0.25f);
  }
  // Ascending mass: .02 .06 .12 .20 .50 ...; below 7 % of 2.00 (.14) are three; four are dropped.
  Options options = {.window = 2, .min_tokens = 0, .share = TSP_SHARE_LAYER, .coverage = 0.07f};
  EXPECT_EQ(problem.select(backend, ctx, scores, options), (Sets{{{1, 3, 5, 7, 8, 9}}}));
  options.min_tokens = 5;  // the fifth best is token 6
  EXPECT_EQ(problem.select(backend, ctx, scores, options), (Sets{{{1, 3, 5, 6, 7, 8, 9}}}));
  options.keep = 0.25f;  // 2.5 of 10, so 3: one prefix token, but min_tokens says 5
  EXPECT_EQ(problem.select(backend, ctx, scores, options), (Sets{{{1, 3, 5, 6, 7, 8, 9}}}));
  options.min_tokens = 0;
  EXPECT_EQ(problem.select(backend, ctx, scores, options), (Sets{{{7, 8, 9}}}));
}

TEST_P(Select, SameSetsAsTheReference) {
  const std::vector<Shape> shapes = {
      {.q_lens = {200}, .k_lens = {1000}, .num_q_heads = 14, .num_kv_heads = 2},
      {.q_lens = {129}, .k_lens = {129}, .num_q_heads = 1, .num_kv_heads = 1},
      {.q_lens = {5000}, .k_lens = {5000}, .num_q_heads = 8, .num_kv_heads = 2},
      {.q_lens = {300, 17, 129}, .k_lens = {900, 4000, 140}, .num_q_heads = 4, .num_kv_heads = 4},
      {.q_lens = {0, 300, 0, 0, 33, 0},
       .k_lens = {0, 900, 41, 0, 33, 12},
       .num_q_heads = 4,
       .num_kv_heads = 2},
      {.q_lens = {128}, .k_lens = {70000}, .num_q_heads = 2, .num_kv_heads = 1},
  };
  for (Shape shape : shapes) {
    // What every backend takes: select reads scores alone.
    shape.q_dtype = shape.kv_dtype = shape.out_dtype = TSP_BF16;
    shape.dim = 64;
    if (!serves(backend, shape)) continue;
    Problem problem(shape);
    for (const int32_t share : {TSP_SHARE_HEAD, TSP_SHARE_KV_GROUP, TSP_SHARE_LAYER}) {
      for (const float spread : {0.1f, 2.0f, 6.0f}) {
        Options options = {.min_tokens = 8, .share = share};
        Tensor scores = spread_scores(problem, options, 3, spread);
        for (const float coverage : {0.0f, 1e-7f, 0.005f, 0.2f, 0.9f, 0.9999f}) {
          options.coverage = coverage;
          expect_as_ref(problem, scores, options);
        }
        for (const float keep : {0.001f, 0.3f, 0.77f, 1.0f}) {
          options.keep = keep;
          expect_as_ref(problem, scores, options);
        }
      }
    }
  }
}

TEST_P(Select, TiesGoToTheLowerPosition) {
  Problem problem({.q_lens = {128}, .k_lens = {1128}, .num_q_heads = 4, .num_kv_heads = 2});
  Tensor scores(TSP_F32, {1000}, 4, 1, Layout::kHeadMajor);
  for (const int levels : {1, 2, 5}) {
    for (int64_t t = 0; t < 1000; ++t) {
      for (int64_t h = 0; h < 4; ++h) {
        scores.set(t, h, 0, static_cast<float>((t * 7 + h) % levels) * 1e-3f);
      }
    }
    for (const int32_t share : {TSP_SHARE_HEAD, TSP_SHARE_KV_GROUP, TSP_SHARE_LAYER}) {
      expect_as_ref(problem, scores, {.min_tokens = 1, .share = share, .keep = 0.4f});
      expect_as_ref(problem, scores, {.min_tokens = 1, .share = share, .coverage = 0.3f});
    }
  }
}

TEST_P(Select, KeepsEverythingWhereItCannotRank) {
  Problem problem({.q_lens = {128}, .k_lens = {1128}, .num_q_heads = 2, .num_kv_heads = 1});
  const Options options = {.min_tokens = 10, .coverage = 0.3f};
  for (const float bad : {kNan, -1e-6f, 2.5f, std::numeric_limits<float>::infinity()}) {
    Tensor scores = spread_scores(problem, options, 3, 2);
    scores.set(500, 1, 0, bad);
    const Sets sets = problem.select(backend, ctx, scores, options);
    EXPECT_EQ(sets[0][0].size(), 1128u) << bad;
    expect_as_ref(problem, scores, options);
  }
  Tensor zeros(TSP_F32, {1000}, 2, 1, Layout::kHeadMajor);
  zeros.randomise(1, 0);
  EXPECT_EQ(problem.select(backend, ctx, zeros, options)[0][0].size(), 1128u);
  Tensor scores = spread_scores(problem, options, 3, 2);
  EXPECT_EQ(problem.select(backend, ctx, scores, {.min_tokens = 1000})[0][0].size(), 1128u);
  EXPECT_EQ(problem.select(backend, ctx, scores, {.min_tokens = 10, .coverage = 0})[0][0].size(),
            1128u);
}

TEST_P(Select, WhatEverySetMustBe) {
  Problem problem({.q_lens = {300}, .k_lens = {3000}, .num_q_heads = 8, .num_kv_heads = 2});
  size_t previous = 3001;
  for (const float coverage : {0.001f, 0.01f, 0.05f, 0.2f, 0.5f}) {
    const Options options = {.min_tokens = 100, .coverage = coverage};
    Tensor scores = spread_scores(problem, options, 11, 2);
    const Sets sets = problem.select(backend, ctx, scores, options);
    for (const auto& set : sets[0]) {
      EXPECT_EQ(set.size(), sets[0][0].size());
      EXPECT_TRUE(std::is_sorted(set.begin(), set.end(), std::less_equal<>()));
      EXPECT_GE(set.size(), 228u);
      for (int32_t t = 2872; t < 3000; ++t)
        EXPECT_TRUE(std::binary_search(set.begin(), set.end(), t));
    }
    EXPECT_LE(sets[0][0].size(), previous) << "more coverage must not keep more";
    previous = sets[0][0].size();
  }
  EXPECT_LT(previous, 1000u);
}

TEST_P(Select, RepeatsAndThreadCountsGiveTheSameSets) {
  Problem problem({.q_lens = {128}, .k_lens = {9000}, .num_q_heads = 4, .num_kv_heads = 2});
  const Options options = {.min_tokens = 100, .coverage = 0.05f};
  Tensor scores = spread_scores(problem, options, 3, 3);
  const Sets sets = problem.select(backend, ctx, scores, options);
  for (int repeat = 0; repeat < 20; ++repeat) {
    tokensparse::Context other = backend.open(1 + repeat % 4);
    ASSERT_EQ(sets, problem.select(backend, other, scores, options)) << repeat;
  }
}

TSP_INSTANTIATE_ON_ALL_BACKENDS(Select);

}  // namespace
}  // namespace tsp::test
