// SPDX-License-Identifier: MIT
// tsp_attend() against the pairwise oracle: shapes, layouts, sets, extreme values.
#include <cmath>
#include <limits>
#include <map>
#include <tuple>

#include "tests/support/op_test.h"

namespace tsp::test {
namespace {

class Attend : public OpTest {
 protected:
  void check(const Shape& shape, const Sets* sets, const Options& options = {}) {
    if (!serves(backend, shape)) return;
    Problem problem(shape);
    check(problem, sets, options);
  }
  /// The oracle's answer, computed once for all backends that round alike.
  const Expected& expected(const Problem& problem, const Sets* sets, const Options& options) {
    using Key = std::tuple<std::string, float, Sets, int32_t, int32_t, int32_t, double, double>;
    static std::map<Key, Expected> cache;
    const Roundoff u = roundoff(backend, problem.shape, options.precision);
    const Key key = {problem.shape.name(),
                     problem.shape.logit_scale,
                     sets == nullptr ? Sets{} : *sets,
                     options.dropped,
                     options.band,
                     options.sink,
                     u.operand,
                     u.weight};
    const auto [entry, is_new] = cache.try_emplace(key);
    if (is_new) {
      entry->second = oracle_attend(problem, sets, options, u.operand, u.weight);
    }
    return entry->second;
  }
  void check(Problem& problem, const Sets* sets, const Options& options = {}) {
    expect_attend(expected(problem, sets, options), problem.attend(backend, ctx, sets, options),
                  problem.shape.name());
  }
};

std::vector<Shape> shapes() {
  const int32_t f32 = TSP_F32, f16 = TSP_F16, bf16 = TSP_BF16;
  return {
      {.q_lens = {1}, .k_lens = {1}},
      {.q_lens = {1}, .k_lens = {300}},
      {.q_lens = {2}, .k_lens = {2}, .num_q_heads = 1, .num_kv_heads = 1, .dim = 8},
      {.q_lens = {65}, .k_lens = {65}, .num_q_heads = 7, .num_kv_heads = 1, .dim = 40},
      {.q_lens = {127}, .k_lens = {127}, .num_q_heads = 4, .num_kv_heads = 4, .dim = 80},
      {.q_lens = {130}, .k_lens = {130}, .num_q_heads = 8, .num_kv_heads = 2, .dim = 96},
      {.q_lens = {257}, .k_lens = {257}, .num_q_heads = 2, .num_kv_heads = 1, .dim = 128},
      {.q_lens = {70}, .k_lens = {70}, .num_q_heads = 2, .num_kv_heads = 1, .dim = 256},
      {.q_lens = {33}, .k_lens = {33}, .num_q_heads = 2, .num_kv_heads = 1, .dim = 1},
      {.q_lens = {51}, .k_lens = {51}, .num_q_heads = 2, .num_kv_heads = 1, .dim = 67},
      {.q_lens = {100}, .k_lens = {613}, .num_q_heads = 14, .num_kv_heads = 2, .dim = 64},
      {.q_lens = {1, 64, 129}, .k_lens = {17, 64, 400}, .num_q_heads = 4, .num_kv_heads = 1},
      {.q_lens = {0, 70, 0, 0, 33, 0},
       .k_lens = {0, 90, 41, 0, 33, 12},
       .num_q_heads = 4,
       .num_kv_heads = 1},
      {.q_lens = {0, 70, 0, 0, 33, 0},
       .k_lens = {0, 90, 41, 0, 33, 12},
       .kv_layout = Layout::kPaged},
      {.q_lens = {0}, .k_lens = {20}},
      {.q_lens = {64}, .k_lens = {200}, .q_dtype = f32, .kv_dtype = f16},
      {.q_lens = {64}, .k_lens = {200}, .q_dtype = f16, .kv_dtype = f16, .out_dtype = f16},
      {.q_lens = {64}, .k_lens = {200}, .q_dtype = bf16, .kv_dtype = bf16, .out_dtype = bf16},
      {.q_lens = {200},
       .k_lens = {300},
       .dim = 128,
       .q_dtype = bf16,
       .kv_dtype = bf16,
       .out_dtype = bf16},
      {.q_lens = {64}, .k_lens = {200}, .q_dtype = bf16, .kv_dtype = f32, .out_dtype = f16},
      {.q_lens = {90},
       .k_lens = {150},
       .q_layout = Layout::kHeadMajor,
       .kv_layout = Layout::kHeadMajor},
      {.q_lens = {90},
       .k_lens = {150},
       .q_dtype = f16,
       .kv_dtype = f16,
       .out_dtype = f16,
       .q_layout = Layout::kHeadMajor,
       .kv_layout = Layout::kHeadMajor},
      {.q_lens = {90},
       .k_lens = {150},
       .kv_dtype = f16,
       .q_layout = Layout::kPadded,
       .kv_layout = Layout::kPadded},
      {.q_lens = {90},
       .k_lens = {150},
       .q_layout = Layout::kDimStrided,
       .kv_layout = Layout::kDimStrided},
      {.q_lens = {90, 40}, .k_lens = {150, 41}, .kv_dtype = bf16, .kv_layout = Layout::kPaged},
      {.q_lens = {90, 40},
       .k_lens = {150, 41},
       .q_dtype = f16,
       .kv_dtype = f16,
       .out_dtype = f16,
       .kv_layout = Layout::kPaged},
  };
}

TEST_P(Attend, DenseMatchesTheOracle) {
  for (const Shape& shape : shapes()) check(shape, nullptr);
}

TEST_P(Attend, SelectedMatchesTheOracle) {
  for (const Shape& shape : shapes()) {
    for (const int32_t share : {TSP_SHARE_HEAD, TSP_SHARE_KV_GROUP, TSP_SHARE_LAYER}) {
      Problem problem(shape);
      const Sets sets = problem.random_sets(share, 0.45f, 16, 5);
      check(shape, &sets);
    }
  }
}

TEST_P(Attend, DroppedRowsSeeTheirBand) {
  for (const Shape& shape : shapes()) {
    Problem problem(shape);
    const Sets sets = problem.random_sets(TSP_SHARE_KV_GROUP, 0.4f, 8, 6);
    for (const int32_t band : {1, 37, 1000}) {
      check(shape, &sets, {.dropped = TSP_DROPPED_LOCAL, .band = band});
    }
  }
}

TEST_P(Attend, DroppedRowsSeeTheSinkAndTheirBandEachKeyOnce) {
  // Apart, touching, overlapping, and either of them longer than the sequence.
  const struct {
    int32_t share, sink, band;
  } cases[] = {{TSP_SHARE_LAYER, 1, 1},
               {TSP_SHARE_KV_GROUP, 4, 37},
               {TSP_SHARE_HEAD, 64, 16},
               {TSP_SHARE_KV_GROUP, 700, 9}};
  for (const Shape& shape : shapes()) {
    Problem problem(shape);
    for (const auto& [share, sink, band] : cases) {
      const Sets sets = problem.random_sets(share, 0.4f, 8, 6);
      const Options options = {.dropped = TSP_DROPPED_LOCAL, .band = band, .sink = sink};
      check(shape, &sets, options);
    }
  }
}

TEST_P(Attend, ASinkWithinTheBandChangesNoBit) {
  const int32_t dtype = backend.is_cuda() ? TSP_BF16 : TSP_F32;
  Problem problem(
      {.q_lens = {150}, .k_lens = {190}, .q_dtype = dtype, .kv_dtype = dtype, .out_dtype = dtype});
  const Sets sets = problem.random_sets(TSP_SHARE_KV_GROUP, 0.4f, 8, 6);
  Options options = {.dropped = TSP_DROPPED_LOCAL, .band = 190};
  const AttendResult band = problem.attend(backend, ctx, &sets, options);
  options.sink = 190;
  const AttendResult both = problem.attend(backend, ctx, &sets, options);
  EXPECT_EQ(band.out.bits(), both.out.bits());
  EXPECT_EQ(band.lse.bits(), both.lse.bits());
}

TEST_P(Attend, SetsThatKeepAllAreDenseBitForBit) {
  for (const Shape& shape : shapes()) {
    if (!serves(backend, shape)) continue;
    Problem problem(shape);
    const AttendResult dense = problem.attend(backend, ctx, nullptr, {});
    for (const int32_t share : {TSP_SHARE_HEAD, TSP_SHARE_LAYER}) {
      const Sets all = problem.random_sets(share, 1.0f, 16, 5);
      const AttendResult same = problem.attend(backend, ctx, &all, {});
      EXPECT_EQ(dense.out.bits(), same.out.bits()) << shape.name();
      EXPECT_EQ(dense.lse.bits(), same.lse.bits()) << shape.name();
    }
  }
}

TEST_P(Attend, ExtremeLogitsStayFinite) {
  const int32_t dtype = backend.is_cuda() ? TSP_BF16 : TSP_F32;
  for (const float scale : {0.0f, 30.0f, 1000.0f}) {
    check({.q_lens = {140},
           .k_lens = {200},
           .q_dtype = dtype,
           .kv_dtype = dtype,
           .out_dtype = dtype,
           .logit_scale = scale},
          nullptr);
  }
}

/// The keys that come later may draw more than the first ones did: a little, a lot, or beyond what
/// their weight beside the first ones' could hold.
TEST_P(Attend, LaterKeysMayDrawFarMoreThanTheFirst) {
  const int32_t dtype = backend.is_cuda() ? TSP_BF16 : TSP_F32;
  const Shape shape = {.q_lens = {60},
                       .k_lens = {2100},
                       .num_q_heads = 2,
                       .num_kv_heads = 1,
                       .q_dtype = dtype,
                       .kv_dtype = dtype,
                       .out_dtype = dtype};
  if (!serves(backend, shape)) return;
  for (const int32_t precision : {TSP_PRECISION_F32, TSP_PRECISION_BF16}) {
    if (precision == TSP_PRECISION_BF16 && !backend.has_bf16()) continue;
    const Options options = {.precision = precision};
    const Roundoff u = roundoff(backend, shape, precision);
    for (const float rise : {1.0f, 4.0f, 10.0f, 50.0f}) {
      Problem problem(shape);
      for (int64_t row = 0; row < 60; ++row) {
        for (int64_t head = 0; head < 2; ++head) problem.q.set(row, head, 0, 16.0f);
      }
      for (int64_t token = 0; token < 2100; ++token) {
        problem.k.set(token, 0, 0, -48.0f + rise * static_cast<float>(token / 500));
      }
      expect_attend(oracle_attend(problem, nullptr, options, u.operand, u.weight),
                    problem.attend(backend, ctx, nullptr, options), std::to_string(rise));
    }
  }
}

TEST_P(Attend, NonFiniteValuesReachOnlyTheRowsThatReadThem) {
  const int32_t dtype = backend.is_cuda() ? TSP_BF16 : TSP_F32;
  for (const float poison :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (const bool in_value : {false, true}) {
      Problem problem({.q_lens = {150},
                       .k_lens = {190},
                       .num_q_heads = 4,
                       .num_kv_heads = 2,
                       .q_dtype = dtype,
                       .kv_dtype = dtype,
                       .out_dtype = dtype});
      const Sets sets = problem.random_sets(TSP_SHARE_LAYER, 0.5f, 16, 9);
      for (const Sets* selected : {static_cast<const Sets*>(nullptr), &sets}) {
        const AttendResult clean = problem.attend(backend, ctx, selected, {});
        const int32_t bad_token = selected == nullptr ? 101 : (*selected)[0][0][60];
        Problem dirty(problem.shape);
        for (int64_t d = 0; d < 64; ++d)
          (in_value ? dirty.v : dirty.k).set(bad_token, 1, d, poison);
        const AttendResult got = dirty.attend(backend, ctx, selected, {});
        for (int64_t row = 0; row < 150; ++row) {
          const bool row_kept =
              selected == nullptr ||
              std::binary_search((*selected)[0][0].begin(), (*selected)[0][0].end(), row + 40);
          for (int64_t head = 0; head < 4; ++head) {
            const bool reads = row_kept && head >= 2 && row + 40 >= bad_token;
            for (int64_t d = 0; d < 64; ++d) {
              const float value = got.out.at(row, head, d);
              if (!reads) {
                ASSERT_EQ(value, clean.out.at(row, head, d)) << row << " " << head;
              } else if (in_value || std::isnan(poison)) {
                ASSERT_FALSE(std::isfinite(value)) << row << " " << head;
              }
            }
          }
        }
      }
    }
  }
}

TEST_P(Attend, RepeatsAndThreadCountsGiveTheSameBits) {
  const int32_t dtype = backend.is_cuda() ? TSP_BF16 : TSP_F32;
  Problem problem({.q_lens = {190},
                   .k_lens = {333},
                   .num_q_heads = 4,
                   .num_kv_heads = 2,
                   .q_dtype = dtype,
                   .kv_dtype = dtype,
                   .out_dtype = dtype});
  const Sets sets = problem.random_sets(TSP_SHARE_HEAD, 0.5f, 16, 9);
  for (const Sets* selected : {static_cast<const Sets*>(nullptr), &sets}) {
    const Options options = {.dropped = TSP_DROPPED_LOCAL, .band = 20};
    const auto bits = problem.attend(backend, ctx, selected, options).out.bits();
    for (int repeat = 0; repeat < 20; ++repeat) {
      tokensparse::Context other = backend.open(1 + repeat % 4);
      ASSERT_EQ(bits, problem.attend(backend, other, selected, options).out.bits()) << repeat;
    }
  }
}

TEST_P(Attend, WorksOnACallersSerialPool) {
  const int32_t dtype = backend.is_cuda() ? TSP_BF16 : TSP_F32;
  Problem problem(
      {.q_lens = {190}, .k_lens = {333}, .q_dtype = dtype, .kv_dtype = dtype, .out_dtype = dtype});
  tokensparse::Context serial =
      backend.open(3, [](void*, int32_t n, void (*fn)(void*, int32_t), void* arg) {
        for (int32_t i = n - 1; i >= 0; --i) fn(arg, i);
      });
  EXPECT_EQ(problem.attend(backend, serial, nullptr, {}).out.bits(),
            problem.attend(backend, ctx, nullptr, {}).out.bits());
}

TEST_P(Attend, Bf16ArithmeticIsServedOrRefusedByName) {
  for (const int64_t dim : {64, 80, 128, 37}) {
    const Shape shape = {.q_lens = {150}, .k_lens = {260}, .dim = dim, .kv_dtype = TSP_F16};
    if (!serves(backend, shape)) continue;
    try {
      check(shape, nullptr, {.precision = TSP_PRECISION_BF16});
    } catch (const std::runtime_error& e) {
      EXPECT_FALSE(backend.has_bf16());
      EXPECT_NE(std::string(e.what()).find("precision"), std::string::npos) << e.what();
    }
  }
}

TSP_INSTANTIATE_ON_ALL_BACKENDS(Attend);

}  // namespace
}  // namespace tsp::test
