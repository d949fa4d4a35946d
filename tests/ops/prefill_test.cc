// SPDX-License-Identifier: MIT
// tsp_prefill(): the sets that score and select give, the attention of those sets, exactness.
#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/support/op_test.h"

namespace tsp::test {
namespace {

class Prefill : public OpTest {
 protected:
  const int32_t dtype = backend.is_cuda() ? TSP_BF16 : TSP_F32;
  Shape shape(std::vector<int32_t> q_lens, std::vector<int32_t> k_lens, int64_t dim = 64) const {
    return {.q_lens = std::move(q_lens),
            .k_lens = std::move(k_lens),
            .num_q_heads = 4,
            .num_kv_heads = 2,
            .dim = dim,
            .q_dtype = dtype,
            .kv_dtype = dtype,
            .out_dtype = dtype,
            .logit_scale = 3};
  }
};

TEST_P(Prefill, IsScoreThenSelectThenAttend) {
  for (const Shape& s :
       {shape({300}, {300}), shape({100}, {420}), shape({90, 60}, {200, 333}, 128)}) {
    for (const int32_t share : {TSP_SHARE_HEAD, TSP_SHARE_KV_GROUP, TSP_SHARE_LAYER}) {
      for (const int32_t dropped : {TSP_DROPPED_ZERO, TSP_DROPPED_LOCAL}) {
        Problem problem(s);
        const Options options = {.window = 16,
                                 .min_tokens = 20,
                                 .share = share,
                                 .coverage = 0.2f,
                                 .dropped = dropped,
                                 .band = 33};
        Tensor scores = problem.score(backend, ctx, options);
        const Backend ref = all_backends().front();
        tokensparse::Context ref_ctx = ref.open();
        const Sets sets = problem.select(ref, ref_ctx, scores, options);
        ASSERT_LT(sets[0][0].size(), static_cast<size_t>(s.k_lens[0])) << "nothing was dropped";
        const AttendResult result = problem.prefill(backend, ctx, options);
        EXPECT_EQ(result.sets, sets) << s.name();
        const Roundoff u = roundoff(backend, s, options.precision);
        expect_attend(oracle_attend(problem, &sets, options, u.operand, u.weight), result,
                      s.name());
      }
    }
  }
}

TEST_P(Prefill, OnePrecisionForScoresAndAttention) {
  if (backend.is_cuda()) return;  // multiplies in the tensors' own dtype, whatever is asked
  Problem problem(shape({100}, {900}));
  const Options options = {
      .window = 16, .min_tokens = 20, .coverage = 0.2f, .precision = TSP_PRECISION_BF16};
  if (backend.backend == TSP_BACKEND_CPU && !backend.has_bf16()) {
    EXPECT_THROW(problem.prefill(backend, ctx, options), std::runtime_error);
    return;
  }
  Tensor scores = problem.score(backend, ctx, options);
  if (backend.has_bf16()) {
    EXPECT_NE(scores.bits(), problem.score(backend, ctx, {.window = 16}).bits());
  }
  const Sets sets = problem.select(backend, ctx, scores, options);
  const AttendResult result = problem.prefill(backend, ctx, options);
  EXPECT_EQ(result.sets, sets);
  EXPECT_EQ(result.out.bits(), problem.attend(backend, ctx, &sets, options).out.bits());
}

TEST_P(Prefill, ExactModeIsDenseBitForBit) {
  for (const Shape& s : {shape({300}, {300}), shape({100}, {420}), shape({1}, {1}),
                         shape({90, 60}, {200, 333}, 128)}) {
    Problem problem(s);
    const AttendResult dense = problem.attend(backend, ctx, nullptr, {});
    for (const Options& options : {Options{.window = 16, .min_tokens = 20, .coverage = 0},
                                   Options{.window = 16, .min_tokens = 2000},
                                   Options{.window = 16, .min_tokens = 20, .keep = 1}}) {
      const AttendResult result = problem.prefill(backend, ctx, options);
      EXPECT_EQ(dense.out.bits(), result.out.bits()) << s.name();
      EXPECT_EQ(dense.lse.bits(), result.lse.bits()) << s.name();
      for (size_t b = 0; b < result.sets.size(); ++b) {
        EXPECT_EQ(result.sets[b][0].size(), static_cast<size_t>(s.k_lens[b]));
      }
    }
  }
}

TEST_P(Prefill, ABatchIsItsSequences) {
  const std::vector<int32_t> q_lens = {90, 1, 130}, k_lens = {400, 77, 130};
  const Options options = {.window = 16, .min_tokens = 20, .coverage = 0.2f};
  Problem together(shape(q_lens, k_lens));
  const AttendResult all = together.prefill(backend, ctx, options);
  for (size_t b = 0; b < q_lens.size(); ++b) {
    Problem alone(shape({q_lens[b]}, {k_lens[b]}));
    for (int32_t r = 0; r < q_lens[b]; ++r) {
      for (int64_t h = 0; h < 4; ++h) {
        for (int64_t d = 0; d < 64; ++d) {
          alone.q.set(r, h, d, together.q.at(together.q_offsets[b] + r, h, d));
        }
      }
    }
    for (int32_t t = 0; t < k_lens[b]; ++t) {
      for (int64_t h = 0; h < 2; ++h) {
        for (int64_t d = 0; d < 64; ++d) {
          alone.k.set(t, h, d, together.k.at(together.k_offsets[b] + t, h, d));
          alone.v.set(t, h, d, together.v.at(together.k_offsets[b] + t, h, d));
        }
      }
    }
    const AttendResult one = alone.prefill(backend, ctx, options);
    EXPECT_EQ(one.sets[0], all.sets[b]);
    for (int32_t r = 0; r < q_lens[b]; ++r) {
      for (int64_t h = 0; h < 4; ++h) {
        for (int64_t d = 0; d < 64; ++d) {
          ASSERT_EQ(one.out.at(r, h, d), all.out.at(together.q_offsets[b] + r, h, d));
        }
      }
    }
  }
}

TEST_P(Prefill, SequencesWithoutQueriesChangeNothingForTheOthers) {
  const Shape s = shape({0, 90, 0, 60, 0}, {50, 200, 0, 333, 0});
  const Options options = {.window = 16, .min_tokens = 20, .coverage = 0.2f};
  Problem problem(s);
  if (backend.is_cuda()) {
    served_or_refused("sequence 0: must have at least one query on cuda",
                      [&] { problem.prefill(backend, ctx, options); });
    return;
  }
  Problem alone(shape({90, 60}, {200, 333}));
  std::copy(problem.q.bytes().begin(), problem.q.bytes().end(), alone.q.bytes().begin());
  const size_t first = 50 * 2 * 64 * sizeof(float);
  for (Tensor Problem::*tensor : {&Problem::k, &Problem::v}) {
    const auto& bytes = (problem.*tensor).bytes();
    std::copy(bytes.begin() + first, bytes.end(), (alone.*tensor).bytes().begin());
  }
  const AttendResult with = problem.prefill(backend, ctx, options);
  const AttendResult without = alone.prefill(backend, ctx, options);
  EXPECT_EQ(with.out.bits(), without.out.bits());
  EXPECT_EQ(with.lse.bits(), without.lse.bits());
  EXPECT_EQ(with.sets[1], without.sets[0]);
  EXPECT_EQ(with.sets[3], without.sets[1]);
  EXPECT_EQ(with.sets[0][0].size(), 50u);
  EXPECT_EQ(with.sets[4][0].size(), 0u);
}

TEST_P(Prefill, OneTokenBeyondTheWindow) {
  Problem problem(shape({129}, {129}));
  const Options options = {.min_tokens = 0, .keep = 0.5f};  // 65 wanted, the window holds 128
  const AttendResult result = problem.prefill(backend, ctx, options);
  EXPECT_EQ(result.sets[0][0].size(), 128u);
  for (int64_t d = 0; d < 64; ++d) EXPECT_EQ(result.out.at(0, 0, d), 0.0f);
  const Roundoff u = roundoff(backend, problem.shape, options.precision);
  expect_attend(oracle_attend(problem, &result.sets, options, u.operand, u.weight), result, "129");
}

TEST_P(Prefill, WhatCannotBeRankedIsDense) {
  Problem problem(shape({200}, {300}));
  problem.k.set(250, 1, 3, std::numeric_limits<float>::quiet_NaN());
  const AttendResult dense = problem.attend(backend, ctx, nullptr, {});
  const AttendResult result =
      problem.prefill(backend, ctx, {.window = 16, .min_tokens = 20, .coverage = 0.2f});
  EXPECT_EQ(result.sets[0][0].size(), 300u);
  for (int64_t row = 0; row < 200; ++row) {
    for (int64_t head = 0; head < 4; ++head) {
      ASSERT_EQ(std::isnan(dense.out.at(row, head, 0)), std::isnan(result.out.at(row, head, 0)));
      ASSERT_EQ(std::isnan(result.out.at(row, head, 0)), head >= 2 && row + 100 >= 250);
    }
  }
}

TEST_P(Prefill, GivenSetsAreAttendedToAndNamed) {
  for (const Shape& s :
       {shape({300}, {300}), shape({100}, {420}), shape({90, 60}, {200, 333}, 128)}) {
    Problem problem(s);
    for (const int32_t share : {TSP_SHARE_HEAD, TSP_SHARE_KV_GROUP, TSP_SHARE_LAYER}) {
      const Sets sets = problem.random_sets(share, 0.4f, 16, 5);
      const Options options = {.dropped = TSP_DROPPED_LOCAL, .band = 33};
      const AttendResult result = problem.prefill(backend, ctx, options, &sets);
      const AttendResult attended = problem.attend(backend, ctx, &sets, options);
      EXPECT_EQ(result.sets, sets);
      EXPECT_EQ(result.out.bits(), attended.out.bits());
      EXPECT_EQ(result.lse.bits(), attended.lse.bits());
    }
    const Sets all = problem.random_sets(TSP_SHARE_LAYER, 1.0f, 16, 5);
    const AttendResult result = problem.prefill(backend, ctx, {}, &all);
    EXPECT_EQ(result.sets, all);
    EXPECT_EQ(result.out.bits(), problem.attend(backend, ctx, nullptr, {}).out.bits());
  }
}

/// Counted one by one: kept tokens, and the pairs of every query row of every head.
std::vector<int64_t> counted(const Shape& s, const Sets& sets, int64_t near) {
  std::vector<int64_t> tally(2);
  for (size_t b = 0; b < sets.size(); ++b) {
    tally[0] += static_cast<int64_t>(sets[b][0].size());
    const bool everything = sets[b][0].size() == static_cast<size_t>(s.k_lens[b]);
    for (int64_t head = 0; head < s.num_q_heads; ++head) {
      const auto& list = sets[b][static_cast<size_t>(head) / (4 / sets[b].size())];
      for (int64_t p = s.k_lens[b] - s.q_lens[b]; p < s.k_lens[b]; ++p) {
        const auto at = std::lower_bound(list.begin(), list.end(), p);
        const bool kept = everything || (at != list.end() && *at == p);
        tally[1] += kept ? at - list.begin() + 1 : std::min(p + 1, near);
      }
    }
  }
  return tally;
}

TEST_P(Prefill, TalliesWhatItKeptAndComputed) {
  for (const Shape& s :
       {shape({300}, {300}), shape({100}, {420}), shape({90, 60, 20}, {200, 333, 20}, 128)}) {
    Problem problem(s);
    for (const int32_t share : {TSP_SHARE_HEAD, TSP_SHARE_KV_GROUP, TSP_SHARE_LAYER}) {
      for (const int32_t sink : {-1, 0, 70}) {
        Options options = {.window = 16, .min_tokens = 20, .share = share, .coverage = 0.2f};
        options.dropped = sink < 0 ? TSP_DROPPED_ZERO : TSP_DROPPED_LOCAL;
        options.sink = std::max(sink, 0);
        options.band = 33;
        const int64_t near = sink < 0 ? 0 : sink + 33;
        const AttendResult chosen = problem.prefill(backend, ctx, options);
        ASSERT_LT(chosen.sets[0][0].size(), static_cast<size_t>(s.k_lens[0]));
        EXPECT_EQ(chosen.tally, counted(s, chosen.sets, near)) << s.name() << " near " << near;
        const AttendResult given = problem.prefill(backend, ctx, options, &chosen.sets);
        EXPECT_EQ(given.tally, chosen.tally) << s.name();
      }
    }
    const AttendResult exact = problem.prefill(backend, ctx, {.coverage = 0});
    EXPECT_EQ(exact.tally, counted(s, exact.sets, 0)) << s.name();
  }
}

TEST_P(Prefill, WhenItPaysLongSequencesAreSparseAndShortOnesExact) {
  if (backend.backend == TSP_BACKEND_REF) return;  // whatever is asked always pays
  if (backend.is_cuda()) return;                   // other lengths: cuda_device_test
  Options options = {
      .window = 8, .min_tokens = 20, .share = TSP_SHARE_LAYER, .keep = 0.1f, .when = TSP_WHEN_PAYS};
  Problem problem(shape({20, 20}, {300, 9000}));
  const AttendResult result = problem.prefill(backend, ctx, options);
  EXPECT_LT(result.sets[1][0].size(), 2000u);
  EXPECT_EQ(result.sets[0], problem.random_sets(TSP_SHARE_LAYER, 1.0f, 8, 5)[0]);
  // Each sequence as it would be alone, with sets of the caller's too.
  const Sets given = problem.random_sets(TSP_SHARE_LAYER, 0.1f, 8, 5);
  const AttendResult attended = problem.prefill(backend, ctx, options, &given);
  EXPECT_EQ(attended.sets, (Sets{result.sets[0], given[1]}));
  for (const AttendResult* r : {&result, &attended}) {
    EXPECT_EQ(r->out.bits(), problem.attend(backend, ctx, &r->sets, options).out.bits());
  }
}

TEST_P(Prefill, WhenItPaysCoverageIsAsAskedOrExact) {
  if (backend.backend == TSP_BACKEND_REF || backend.is_cuda()) return;
  for (const Layout layout : {Layout::kTokenMajor, Layout::kPaged}) {
    Shape s = shape({1500, 200}, {4001, 300}, 16);
    s.kv_layout = layout;
    Problem problem(s);
    Options options = {.window = 8, .min_tokens = 20, .share = TSP_SHARE_LAYER};
    for (const float coverage : {0.5f, 1e-7f}) {
      options.coverage = coverage;
      options.when = TSP_WHEN_ALWAYS;
      Sets sets = problem.prefill(backend, ctx, options).sets;
      options.when = TSP_WHEN_PAYS;
      const AttendResult result = problem.prefill(backend, ctx, options);
      EXPECT_EQ(result.sets[1][0].size(), 300u);
      sets[1] = result.sets[1];
      if (coverage < 0.5f) {
        EXPECT_EQ(result.sets[0][0].size(), 4001u);
      } else {
        EXPECT_LT(result.sets[0][0].size(), 3000u);
        EXPECT_EQ(result.sets, sets);
      }
      EXPECT_EQ(result.out.bits(), problem.attend(backend, ctx, &result.sets, options).out.bits());
    }
  }
}

TEST_P(Prefill, RepeatsAndThreadCountsGiveTheSameBits) {
  Problem problem(shape({190}, {333}));
  const Options options = {.window = 16, .min_tokens = 20, .coverage = 0.1f};
  const auto bits = problem.prefill(backend, ctx, options).out.bits();
  for (int repeat = 0; repeat < 20; ++repeat) {
    tokensparse::Context other = backend.open(1 + repeat % 4);
    ASSERT_EQ(bits, problem.prefill(backend, other, options).out.bits()) << repeat;
  }
}

TSP_INSTANTIATE_ON_ALL_BACKENDS(Prefill);

}  // namespace
}  // namespace tsp::test
