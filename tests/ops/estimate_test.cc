// SPDX-License-Identifier: MIT
// tsp_estimate(): the lists of the oracle on every backend, what any list must be, and what is
// refused.
#include <cmath>
#include <functional>
#include <limits>

#include "tests/support/blocks.h"
#include "tests/support/op_test.h"

namespace tsp::test {
namespace {

tsp_pattern_t pattern(int32_t kind, int32_t block = 16) {
  tsp_pattern_t p;
  tsp_pattern_init(&p, kind);
  p.block = block;
  p.stride = 4;
  p.threshold = 0.6f;
  p.min_budget = 2 * block;
  p.vertical = 35;
  p.slash = 60;
  return p;
}

/// Every method, both branches of flexprefill among them.
std::vector<tsp_pattern_t> patterns(int32_t block = 16) {
  std::vector<tsp_pattern_t> all;
  for (int32_t kind = TSP_PATTERN_XATTENTION; kind <= TSP_PATTERN_FLASH; ++kind) {
    all.push_back(pattern(kind, block));
    if (kind == TSP_PATTERN_FLEXPREFILL) {
      all.back().gamma = 0.45f;
      all.push_back(all.back());
      all.back().tau = 1;
      all.push_back(all.back());
      all.back().tau = 0;
    }
  }
  return all;
}

std::string describe(const tsp_pattern_t& p, const Shape& shape) {
  return "kind " + std::to_string(p.kind) + ", share " + std::to_string(p.share) + ", tau " +
         std::to_string(p.tau) + ", block " + std::to_string(p.block) + ", " + shape.name();
}

class Estimate : public OpTest {
 protected:
  /// The shape in what this backend takes.
  Shape served(Shape shape) const {
    if (!backend.is_cuda()) return shape;
    const int32_t dtype = shape.kv_dtype == TSP_F16 ? TSP_F16 : TSP_BF16;
    shape.q_dtype = shape.kv_dtype = shape.out_dtype = dtype;
    shape.dim = shape.dim > 64 ? 128 : 64;
    if (shape.kv_layout == Layout::kPadded) shape.kv_layout = Layout::kHeadMajor;
    for (int32_t& len : shape.q_lens) len = std::max(len, 1);
    return shape;
  }
  void expect_oracle(Problem& problem, const BlockOracle& oracle, const tsp_pattern_t& p,
                     const Sets* sets = nullptr) {
    EXPECT_EQ(oracle.lists(p, sets), estimate(backend, ctx, problem, p, sets))
        << describe(p, problem.shape);
  }
};

/// Lists are compared, not masses: with these seeds no estimate lies within rounding of a limit.
TEST_P(Estimate, TheListsOfTheOracle) {
  const std::vector<Shape> shapes = {
      {.q_lens = {200}, .k_lens = {200}, .dim = 40, .logit_scale = 2},
      {.q_lens = {77}, .k_lens = {333}, .num_q_heads = 6, .kv_layout = Layout::kPaged},
      {.q_lens = {1}, .k_lens = {50}, .q_layout = Layout::kHeadMajor},
      {.q_lens = {60, 0, 33, 90},
       .k_lens = {200, 5, 33, 111},
       .dim = 33,
       .kv_dtype = TSP_F16,
       .kv_layout = Layout::kPadded},
      {.q_lens = {160},
       .k_lens = {192},
       .dim = 128,
       .q_dtype = TSP_BF16,
       .kv_dtype = TSP_BF16,
       .seed = 8},
  };
  for (const Shape& shape : shapes) {
    Problem problem(served(shape));
    const BlockOracle oracle(problem);
    for (tsp_pattern_t p : patterns()) {
      for (const int32_t share : {TSP_SHARE_HEAD, TSP_SHARE_KV_GROUP, TSP_SHARE_LAYER}) {
        p.share = share;
        expect_oracle(problem, oracle, p);
      }
    }
  }
}

TEST_P(Estimate, OnTheKeptTokens) {
  Problem problem(
      served({.q_lens = {150, 90}, .k_lens = {400, 90}, .num_q_heads = 4, .num_kv_heads = 2}));
  const BlockOracle oracle(problem);
  for (const int32_t share : {TSP_SHARE_HEAD, TSP_SHARE_KV_GROUP, TSP_SHARE_LAYER}) {
    const Sets sets = problem.random_sets(share, 0.6f, 32, 5);
    for (tsp_pattern_t p : patterns()) {
      p.share = share;
      expect_oracle(problem, oracle, p, &sets);
      p.share = TSP_SHARE_HEAD;
      expect_oracle(problem, oracle, p, &sets);
    }
  }
}

TEST_P(Estimate, BlocksAndStridesOfOtherSizes) {
  Problem problem(served({.q_lens = {300}, .k_lens = {1100}, .num_q_heads = 2, .num_kv_heads = 1}));
  const BlockOracle oracle(problem);
  for (const int32_t block : {48, 128, 512}) {
    for (tsp_pattern_t p : patterns(block)) {
      for (const int32_t stride : {2, 16}) {
        p.stride = stride;
        expect_oracle(problem, oracle, p);
        if (p.kind != TSP_PATTERN_XATTENTION) break;
      }
    }
  }
}

/// More rows and columns than a tile of any kernel has.
TEST_P(Estimate, OfManyTiles) {
  Problem problem(served({.q_lens = {900}, .k_lens = {2300}, .num_q_heads = 2, .num_kv_heads = 1}));
  const BlockOracle oracle(problem);
  const Sets sets = problem.random_sets(TSP_SHARE_HEAD, 0.7f, 32, 5);
  for (tsp_pattern_t p : patterns(128)) {
    for (const int32_t stride : {2, 8}) {
      p.stride = stride;
      expect_oracle(problem, oracle, p);
      expect_oracle(problem, oracle, p, &sets);
      if (p.kind != TSP_PATTERN_XATTENTION) break;
    }
  }
}

TEST_P(Estimate, WhatIsAlwaysIn) {
  Problem problem(served({.q_lens = {200}, .k_lens = {300}, .num_q_heads = 2, .num_kv_heads = 2}));
  const BlockOracle oracle(problem);
  for (tsp_pattern_t p : patterns()) {
    p.threshold = 0.01f;
    p.alpha = 1;
    p.sink_blocks = 2;
    p.local_blocks = 3;
    p.last_blocks = 1;
    expect_oracle(problem, oracle, p);
    p.sink_blocks = p.local_blocks = p.last_blocks = 1 << 30;
    expect_oracle(problem, oracle, p);
  }
}

TEST_P(Estimate, WhatIsAlwaysInAmongTheKeptTokens) {
  Problem problem(
      served({.q_lens = {150, 90}, .k_lens = {400, 90}, .num_q_heads = 4, .num_kv_heads = 2}));
  const BlockOracle oracle(problem);
  for (const int32_t share : {TSP_SHARE_HEAD, TSP_SHARE_KV_GROUP, TSP_SHARE_LAYER}) {
    const Sets sets = problem.random_sets(share, 0.6f, 32, 5);
    for (tsp_pattern_t p : patterns()) {
      p.share = share;
      p.threshold = 0.01f;
      p.alpha = 1;
      p.sink_blocks = 1;
      p.local_blocks = 2;
      p.last_blocks = 1;
      expect_oracle(problem, oracle, p, &sets);
    }
  }
}

TEST_P(Estimate, AllOfIt) {
  Problem problem(served({.q_lens = {200}, .k_lens = {300}}));
  const BlockOracle oracle(problem);
  tsp_pattern_t all = pattern(TSP_PATTERN_XATTENTION);
  all.last_blocks = 1 << 30;
  const BlockLists everything = oracle.lists(all);
  for (tsp_pattern_t p : patterns()) {
    if (p.kind == TSP_PATTERN_MINFERENCE) continue;
    p.threshold = p.gamma = 1;
    p.alpha = 0;
    EXPECT_EQ(everything.blocks, estimate(backend, ctx, problem, p).blocks) << p.kind;
  }
}

TEST_P(Estimate, AThresholdForEachHead) {
  Problem problem(served({.q_lens = {300}, .k_lens = {300}, .num_q_heads = 4, .num_kv_heads = 2}));
  const BlockOracle oracle(problem);
  const float thresholds[] = {0.2f, 0.5f, 0.9f, 1.0f};
  for (const int32_t kind : {TSP_PATTERN_XATTENTION, TSP_PATTERN_POOLED}) {
    tsp_pattern_t p = pattern(kind);
    p.thresholds = thresholds;
    expect_oracle(problem, oracle, p);
    const BlockLists lists = estimate(backend, ctx, problem, p);
    for (size_t h = 1; h < 4; ++h) {
      EXPECT_GT(lists.blocks[0][h][18].size(), lists.blocks[0][h - 1][18].size());
    }
  }
}

TEST_P(Estimate, AThresholdForEachSetOfTheKeptTokens) {
  Problem problem(served({.q_lens = {300}, .k_lens = {500}, .num_q_heads = 4, .num_kv_heads = 2}));
  const BlockOracle oracle(problem);
  const float thresholds[] = {0.3f, 0.8f, 0.5f, 1.0f};
  for (const int32_t share : {TSP_SHARE_HEAD, TSP_SHARE_KV_GROUP, TSP_SHARE_LAYER}) {
    const Sets sets = problem.random_sets(share, 0.6f, 32, 5);
    for (const int32_t kind : {TSP_PATTERN_XATTENTION, TSP_PATTERN_POOLED}) {
      tsp_pattern_t p = pattern(kind);
      p.share = share;
      p.thresholds = thresholds;
      expect_oracle(problem, oracle, p);
      expect_oracle(problem, oracle, p, &sets);
    }
  }
}

TEST_P(Estimate, TiesGoToTheLowerBlock) {
  // Equal keys: every estimate is uniform, and exact in any arithmetic.
  Problem problem(served({.q_lens = {128}, .k_lens = {128}, .num_q_heads = 1, .num_kv_heads = 1}));
  problem.k.randomise(1, 0);
  tsp_pattern_t p = pattern(TSP_PATTERN_POOLED);
  p.threshold = 0.5f;
  const BlockLists lists = estimate(backend, ctx, problem, p);
  EXPECT_EQ(lists.blocks[0][0][7], (std::vector<int32_t>{0, 1, 2, 7}));
  EXPECT_EQ(lists.blocks[0][0][1], (std::vector<int32_t>{1}));
  p.kind = TSP_PATTERN_FLASH;
  p.sink_blocks = p.local_blocks = p.last_blocks = 0;
  p.alpha = 1;
  EXPECT_EQ(estimate(backend, ctx, problem, p).blocks[0][0][3], (std::vector<int32_t>{0, 1, 2, 3}));
}

TEST_P(Estimate, WhatIsNotFiniteReadsEverything) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (const bool in_q : {true, false}) {
      Problem problem(
          served({.q_lens = {200}, .k_lens = {200}, .num_q_heads = 2, .num_kv_heads = 2}));
      Problem good(problem.shape);
      (in_q ? problem.q : problem.k).set(in_q ? 190 : 100, 1, 3, bad);
      for (const tsp_pattern_t& p : patterns()) {
        const BlockLists lists = estimate(backend, ctx, problem, p);
        const BlockLists before = estimate(backend, ctx, good, p);
        EXPECT_EQ(lists.blocks[0][0], before.blocks[0][0]) << "the other head, kind " << p.kind;
        const bool lines = p.kind == TSP_PATTERN_MINFERENCE || p.kind == TSP_PATTERN_FLEXPREFILL;
        for (size_t m = 0; m < 13; ++m) {
          const bool reached = lines || (in_q ? m == 190 / 16 : m >= 100 / 16);
          if (reached) {
            EXPECT_EQ(lists.blocks[0][1][m].size(), m + 1) << p.kind << ", block " << m;
          } else {
            EXPECT_EQ(lists.blocks[0][1][m], before.blocks[0][1][m]) << p.kind << ", block " << m;
          }
        }
      }
    }
  }
}

TEST_P(Estimate, TheSameOnAnyNumberOfThreads) {
  Problem problem(served({.q_lens = {900}, .k_lens = {1300}, .num_q_heads = 6, .num_kv_heads = 2}));
  for (const tsp_pattern_t& p : patterns(64)) {
    const BlockLists lists = estimate(backend, ctx, problem, p);
    for (int repeat = 0; repeat < 20; ++repeat) {
      tokensparse::Context other = backend.open(1 + repeat % 4);
      ASSERT_EQ(lists, estimate(backend, other, problem, p)) << p.kind << ", repeat " << repeat;
      if (backend.backend == TSP_BACKEND_REF) break;
    }
  }
}

TEST_P(Estimate, Bf16ProductsChangeFewBlocks) {
  Problem problem(
      served({.q_lens = {600}, .k_lens = {600}, .q_dtype = TSP_BF16, .kv_dtype = TSP_BF16}));
  const BlockOracle oracle(problem);
  for (const tsp_pattern_t& p : patterns(16)) {
    try {
      const BlockLists lists = estimate(backend, ctx, problem, p, nullptr, TSP_PRECISION_BF16);
      EXPECT_LT(lists.difference(oracle.lists(p)), 0.03) << p.kind;
    } catch (const std::runtime_error& e) {
      EXPECT_EQ(std::string(e.what()).substr(0, 10), "precision:");
    }
  }
}

TEST_P(Estimate, NamesWhatIsWrong) {
  Problem problem(served({.q_lens = {64}, .k_lens = {64}}));
  const auto refused = [&](const std::string& sentence,
                           const std::function<void(tsp_pattern_t&)>& spoil) {
    for (tsp_pattern_t p : patterns()) {
      spoil(p);
      try {
        estimate(backend, ctx, problem, p);
      } catch (const std::runtime_error& e) {
        if (e.what() == sentence) return;
        EXPECT_EQ(e.what(), sentence);
      }
    }
    ADD_FAILURE() << "nobody said: " << sentence;
  };
  refused("pattern.kind: must be between 1 and 5, got 0", [](auto& p) { p.kind = 0; });
  refused("pattern.block: must be a multiple of 16, got 24", [](auto& p) { p.block = 24; });
  refused("pattern.block: must be between 16 and 512, got 1024", [](auto& p) { p.block = 1024; });
  refused("pattern.stride: must divide pattern.block (16), got 3", [](auto& p) { p.stride = 3; });
  refused("pattern.threshold: must be in (0, 1], got 0", [](auto& p) { p.threshold = 0; });
  refused("pattern.threshold: must be in (0, 1], got 1.25", [](auto& p) { p.threshold = 1.25f; });
  refused("pattern.threshold: must be in (0, 1], got nan",
          [](auto& p) { p.threshold = std::nanf(""); });
  static const float thresholds[] = {0.5f, 0.5f, 1.5f, 0.5f};
  refused("pattern.thresholds: must be in (0, 1], got 1.5",
          [](auto& p) { p.thresholds = thresholds; });
  refused("pattern.gamma: must be in (0, 1], got -1", [](auto& p) { p.gamma = -1; });
  refused("pattern.tau: must be in [0, 1], got 2", [](auto& p) { p.tau = 2; });
  refused("pattern.alpha: must be in [0, 1], got 2", [](auto& p) { p.alpha = 2; });
  refused("pattern.vertical: must be between 1 and 1073741824, got 0",
          [](auto& p) { p.vertical = 0; });
  refused("pattern.slash: must be between 1 and 1073741824, got -5", [](auto& p) { p.slash = -5; });
  refused("pattern.sink_blocks: must be between 0 and 1073741824, got -1",
          [](auto& p) { p.sink_blocks = -1; });
  const Sets sets = problem.random_sets(TSP_SHARE_HEAD, 0.5f, 16, 1);
  tsp_pattern_t p = pattern(TSP_PATTERN_POOLED);
  p.share = TSP_SHARE_LAYER;
  try {
    estimate(backend, ctx, problem, p, &sets);
    ADD_FAILURE() << "one set of blocks for four lists of tokens";
  } catch (const std::runtime_error& e) {
    EXPECT_STREQ(e.what(), "blocks.num_sets: must be a multiple of selected.num_sets (4), got 1");
  }
}

TSP_INSTANTIATE_ON_ALL_BACKENDS(Estimate);

}  // namespace
}  // namespace tsp::test
