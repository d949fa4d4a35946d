// SPDX-License-Identifier: MIT
// tsp_score() against the explicit softmax of the window's rows.
#include <cmath>
#include <limits>

#include "tests/support/op_test.h"

namespace tsp::test {
namespace {

class Score : public OpTest {
 protected:
  void check(const Shape& shape, const Options& options) {
    if (!serves(backend, shape)) return;
    Problem problem(shape);
    std::vector<double> scores, bounds;
    const Roundoff u = roundoff(backend, shape, options.precision);
    oracle_score(problem, options, u.operand, &scores, &bounds);
    expect_score(scores, bounds, problem.score(backend, ctx, options), shape.name());
  }
};

TEST_P(Score, MatchesTheOracle) {
  const int32_t f16 = TSP_F16, bf16 = TSP_BF16;
  const std::vector<Shape> shapes = {
      {.q_lens = {129}, .k_lens = {129}},
      {.q_lens = {700}, .k_lens = {700}, .num_q_heads = 7, .num_kv_heads = 1},
      {.q_lens = {200}, .k_lens = {1500}, .num_q_heads = 4, .num_kv_heads = 4, .dim = 128},
      {.q_lens = {50}, .k_lens = {777}, .num_q_heads = 4, .num_kv_heads = 1, .dim = 40},
      {.q_lens = {300}, .k_lens = {300}, .num_q_heads = 2, .num_kv_heads = 1, .dim = 80},
      {.q_lens = {300}, .k_lens = {300}, .num_q_heads = 2, .num_kv_heads = 1, .dim = 96},
      {.q_lens = {140}, .k_lens = {140}, .num_q_heads = 2, .num_kv_heads = 1, .dim = 256},
      {.q_lens = {1}, .k_lens = {90}},
      {.q_lens = {0, 70, 0, 0, 33, 0}, .k_lens = {0, 90, 41, 0, 33, 12}},
      {.q_lens = {0}, .k_lens = {20}},
      {.q_lens = {130, 20, 140}, .k_lens = {500, 21, 140}},
      {.q_lens = {200}, .k_lens = {900}, .kv_dtype = f16},
      {.q_lens = {200},
       .k_lens = {900},
       .num_q_heads = 8,
       .num_kv_heads = 2,
       .q_dtype = f16,
       .kv_dtype = f16,
       .out_dtype = f16},
      {.q_lens = {333},
       .k_lens = {2100},
       .num_q_heads = 14,
       .num_kv_heads = 2,
       .dim = 64,
       .q_dtype = bf16,
       .kv_dtype = bf16,
       .out_dtype = bf16},
      {.q_lens = {200},
       .k_lens = {1100},
       .num_q_heads = 8,
       .num_kv_heads = 2,
       .dim = 128,
       .q_dtype = bf16,
       .kv_dtype = bf16,
       .out_dtype = bf16},
      {.q_lens = {200},
       .k_lens = {900},
       .q_layout = Layout::kPadded,
       .kv_layout = Layout::kDimStrided},
      {.q_lens = {150, 30},
       .k_lens = {400, 60},
       .q_dtype = bf16,
       .kv_dtype = bf16,
       .out_dtype = bf16,
       .kv_layout = Layout::kPaged},
      {.q_lens = {200}, .k_lens = {900}, .logit_scale = 60},
  };
  for (const Shape& shape : shapes) check(shape, {});
}

/// What a row's first keys draw says nothing about the later ones: those may draw 2^100 times as
/// much, and more than nothing.
TEST_P(Score, LaterKeysMayDrawFarMoreThanTheFirst) {
  const Shape shape = {.q_lens = {40}, .k_lens = {1300}, .num_q_heads = 2, .num_kv_heads = 1};
  if (!serves(backend, shape)) return;
  const Options options = {.window = 32};
  for (const float highest : {24.0f, -8.0f}) {
    Problem problem(shape);
    for (int64_t token = 0; token < 40; ++token) {
      for (int64_t head = 0; head < 2; ++head) problem.q.set(token, head, 0, 16.0f);
    }
    const auto set_first_keys = [&](float value) {
      for (int64_t token = 0; token < 900; ++token) problem.k.set(token, 0, 0, value);
    };
    set_first_keys(-48.0f);
    for (int64_t token = 900; token < 1300; ++token) problem.k.set(token, 0, 0, -16.0f);
    problem.k.set(1000, 0, 0, highest);
    std::vector<double> scores, bounds;
    oracle_score(problem, options, roundoff(backend, shape, options.precision).operand, &scores,
                 &bounds);
    expect_score(scores, bounds, problem.score(backend, ctx, options), std::to_string(highest));
    set_first_keys(-3e38f);  // their products are minus infinity
    expect_score(scores, bounds, problem.score(backend, ctx, options), std::to_string(highest));
  }
}

TEST_P(Score, Bf16ArithmeticIsServedOrRefusedByName) {
  for (const int64_t dim : {64, 80, 128, 37}) {
    const Shape shape = {.q_lens = {150, 40},
                         .k_lens = {1260, 300},
                         .num_q_heads = 7,
                         .num_kv_heads = 1,
                         .dim = dim,
                         .kv_dtype = TSP_F16};
    if (!serves(backend, shape)) continue;
    try {
      check(shape, {.precision = TSP_PRECISION_BF16});
    } catch (const std::runtime_error& e) {
      EXPECT_FALSE(backend.has_bf16());
      EXPECT_NE(std::string(e.what()).find("precision"), std::string::npos) << e.what();
    }
  }
}

TEST_P(Score, WindowAndPoolOfAnySize) {
  const int32_t dtype = backend.is_cuda() ? TSP_BF16 : TSP_F32;
  for (const int32_t window : {1, 2, 63, 128, 200}) {
    for (const int32_t pool : {1, 3, 7, 31}) {
      check({.q_lens = {170},
             .k_lens = {260},
             .q_dtype = dtype,
             .kv_dtype = dtype,
             .out_dtype = dtype},
            {.window = window, .pool = pool});
    }
  }
}

TEST_P(Score, APrefixOfNothingIsNoWork) {
  const int32_t dtype = backend.is_cuda() ? TSP_BF16 : TSP_F32;
  Problem problem(
      {.q_lens = {40}, .k_lens = {40}, .q_dtype = dtype, .kv_dtype = dtype, .out_dtype = dtype});
  EXPECT_EQ(problem.score(backend, ctx, {}).tokens(), 0);
}

TEST_P(Score, NanInAKeyMakesItsHeadsUnrankable) {
  const int32_t dtype = backend.is_cuda() ? TSP_BF16 : TSP_F32;
  Problem problem({.q_lens = {200},
                   .k_lens = {300},
                   .num_q_heads = 4,
                   .num_kv_heads = 2,
                   .q_dtype = dtype,
                   .kv_dtype = dtype,
                   .out_dtype = dtype});
  problem.k.set(37, 1, 5, std::numeric_limits<float>::quiet_NaN());
  const Tensor scores = problem.score(backend, ctx, {});
  for (int64_t t = 0; t < scores.tokens(); ++t) {
    ASSERT_TRUE(std::isfinite(scores.at(t, 0)) && std::isfinite(scores.at(t, 1)));
    ASSERT_TRUE(std::isnan(scores.at(t, 2)) && std::isnan(scores.at(t, 3))) << t;
  }
}

TEST_P(Score, RepeatsAndThreadCountsGiveTheSameBits) {
  const int32_t dtype = backend.is_cuda() ? TSP_BF16 : TSP_F32;
  Problem problem(
      {.q_lens = {190}, .k_lens = {1333}, .q_dtype = dtype, .kv_dtype = dtype, .out_dtype = dtype});
  const auto bits = problem.score(backend, ctx, {}).bits();
  const int repeats = backend.name == "ref" ? 2 : 20;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    tokensparse::Context other = backend.open(1 + repeat % 4);
    ASSERT_EQ(bits, problem.score(backend, other, {}).bits()) << repeat;
  }
}

TSP_INSTANTIATE_ON_ALL_BACKENDS(Score);

}  // namespace
}  // namespace tsp::test
