// SPDX-License-Identifier: MIT
// tsp_prefill() with a block pattern: what estimate finds among the kept tokens, attended by hand.
#include "tests/support/blocks.h"
#include "tests/support/op_test.h"

namespace tsp::test {
namespace {

tsp_pattern_t pattern(int32_t kind, int32_t share = TSP_SHARE_HEAD, int32_t block = 16) {
  tsp_pattern_t p;
  tsp_pattern_init(&p, kind);
  p.block = block;
  p.share = share;
  p.stride = 4;
  p.threshold = 0.6f;
  p.gamma = 0.45f;
  p.min_budget = 2 * block;
  p.vertical = 35;
  p.slash = 60;
  p.alpha = 1;
  p.sink_blocks = p.local_blocks = p.last_blocks = 0;
  return p;
}

Blocks given(const BlockLists& lists, int32_t block) {
  Blocks blocks{.block = block, .rows = lists.blocks, .columns = lists.columns};
  bool any = false;
  for (const auto& sequence : blocks.columns) {
    for (const auto& set : sequence) any = any || !set.empty();
  }
  if (!any) blocks.columns.clear();
  return blocks;
}

size_t listed(const BlockLists& lists) {
  size_t count = 0;
  for (const auto& sequence : lists.blocks) {
    for (const auto& set : sequence) {
      for (const auto& row : set) count += row.size();
    }
  }
  return count;
}

/// Query-key pairs of all heads, counted one by one. `lists` null: every block.
int64_t pairs_one_by_one(const Shape& shape, const Options& options, const Sets* sets,
                         const BlockLists* lists, int32_t block, size_t b) {
  int64_t pairs = 0;
  for (int64_t head = 0; head < shape.num_q_heads; ++head) {
    const auto of = [head, &shape](const auto& all) {
      return static_cast<size_t>(head) / (static_cast<size_t>(shape.num_q_heads) / all.size());
    };
    std::vector<int32_t> list;
    for (int32_t i = 0; sets == nullptr && i < shape.k_lens[b]; ++i) list.push_back(i);
    if (sets != nullptr) list = (*sets)[b][of((*sets)[b])];
    const int32_t first_row = shape.k_lens[b] - shape.q_lens[b];
    size_t e0 = 0;
    while (list[e0] < first_row) ++e0;
    for (int32_t row = first_row; row < shape.k_lens[b]; ++row) {
      const auto at = std::lower_bound(list.begin(), list.end(), row);
      if (at == list.end() || *at != row) {
        const bool local = options.dropped == TSP_DROPPED_LOCAL;
        for (int32_t j = 0; local && j <= row; ++j) {
          pairs += j < options.sink || j > row - options.band;
        }
        continue;
      }
      const size_t entry = static_cast<size_t>(at - list.begin());
      for (size_t j = 0; j <= entry; ++j) {
        if (lists == nullptr) {
          ++pairs;
          continue;
        }
        const auto& blocks =
            lists->blocks[b][of(lists->blocks[b])][(entry - e0) / static_cast<size_t>(block)];
        const auto& columns = lists->columns[b];
        const auto holds = [](const auto& values, size_t value) {
          return std::count(values.begin(), values.end(), static_cast<int32_t>(value)) > 0;
        };
        pairs += holds(blocks, j / static_cast<size_t>(block)) ||
                 (!columns.empty() && holds(columns[of(columns)], j));
      }
    }
  }
  return pairs;
}

/// The kinds whose lists a backend attends, and shapes that have blocks to leave out.
class PrefillPattern : public OpTest {
 protected:
  /// CUDA attends blocks of 128, and no single columns.
  int32_t block() const { return backend.is_cuda() ? 128 : 16; }
  std::vector<int32_t> kinds() const {
    std::vector<int32_t> all;
    for (int32_t kind = TSP_PATTERN_XATTENTION; kind <= TSP_PATTERN_FLASH; ++kind) {
      if (!backend.is_cuda() || kind != TSP_PATTERN_MINFERENCE) all.push_back(kind);
    }
    return all;
  }
  std::vector<Shape> shapes() const {
    std::vector<Shape> all = {
        {.q_lens = {300}, .k_lens = {300}, .num_q_heads = 4, .num_kv_heads = 2, .logit_scale = 3},
        {.q_lens = {90, 60},
         .k_lens = {200, 333},
         .num_q_heads = 4,
         .num_kv_heads = 2,
         .dim = 80,
         .kv_dtype = TSP_F16,
         .kv_layout = Layout::kPaged,
         .logit_scale = 3},
    };
    for (Shape& shape : all) {
      if (!backend.is_cuda()) continue;
      for (int32_t& len : shape.q_lens) len *= 6;
      for (int32_t& len : shape.k_lens) len *= 6;
      const int32_t dtype = shape.kv_dtype == TSP_F16 ? TSP_F16 : TSP_BF16;
      shape.q_dtype = shape.kv_dtype = shape.out_dtype = dtype;
      shape.dim = shape.dim > 64 ? 128 : 64;
    }
    return all;
  }
};

TEST_P(PrefillPattern, CountsThePairsThatAreComputed) {
  if (backend.is_cuda()) GTEST_SKIP() << "this backend does not count them";
  for (const Shape& shape : shapes()) {
    Problem problem(shape);
    for (int32_t kind = TSP_PATTERN_NONE; kind <= TSP_PATTERN_FLASH; ++kind) {
      for (const float coverage : {0.0f, 0.2f}) {
        const tsp_pattern_t p = pattern(kind);
        const bool local = kind % 2 == 0;
        const Options options = {.window = 16,
                                 .min_tokens = 20,
                                 .share = TSP_SHARE_KV_GROUP,
                                 .coverage = coverage,
                                 .dropped = local ? TSP_DROPPED_LOCAL : TSP_DROPPED_ZERO,
                                 .band = 33,
                                 .sink = 3};
        const AttendResult found = problem.prefill(backend, ctx, options, nullptr, nullptr, &p);
        const Sets* const sets = coverage > 0 ? &found.sets : nullptr;
        BlockLists lists;
        if (kind != TSP_PATTERN_NONE) lists = estimate(backend, ctx, problem, p, sets);
        int64_t kept = 0, pairs = 0;
        for (size_t b = 0; b < shape.k_lens.size(); ++b) {
          kept += static_cast<int64_t>(found.sets[b][0].size());
          pairs += pairs_one_by_one(shape, options, sets,
                                    kind == TSP_PATTERN_NONE ? nullptr : &lists, p.block, b);
        }
        EXPECT_EQ(found.tally, (std::vector<int64_t>{kept, pairs})) << kind << " " << shape.name();
      }
    }
  }
}

TEST_P(PrefillPattern, IsLeftOutWhereItIsNotExpectedToPay) {
  if (backend.is_cuda()) GTEST_SKIP() << "lengths decide there";
  Problem problem(shapes()[0]);
  const tsp_pattern_t p = pattern(TSP_PATTERN_XATTENTION);
  const Options always = {.coverage = 0};
  Options pays = always;
  pays.when = TSP_WHEN_PAYS;
  const AttendResult dense = problem.prefill(backend, ctx, always);
  const AttendResult by_blocks = problem.prefill(backend, ctx, always, nullptr, nullptr, &p);
  const AttendResult found = problem.prefill(backend, ctx, pays, nullptr, nullptr, &p);
  const bool has_costs = std::string(ctx.backend()) == "cpu";  // the reference has no speed
  const AttendResult& expected = has_costs ? dense : by_blocks;
  EXPECT_LT(by_blocks.tally[1], dense.tally[1]);
  EXPECT_EQ(found.tally, expected.tally);
  EXPECT_EQ(found.out.bits(), expected.out.bits());
}

TEST_P(PrefillPattern, IsSelectThenEstimateThenAttend) {
  for (const Shape& shape : shapes()) {
    for (const int32_t kind : kinds()) {
      for (const int32_t share : {TSP_SHARE_HEAD, TSP_SHARE_KV_GROUP}) {
        Problem problem(shape);
        const tsp_pattern_t p = pattern(kind, share, block());
        const Options options = {.window = 16,
                                 .min_tokens = 20,
                                 .share = TSP_SHARE_KV_GROUP,
                                 .coverage = 0.2f,
                                 .dropped = TSP_DROPPED_LOCAL,
                                 .band = 33,
                                 .sink = 3};
        const AttendResult found = problem.prefill(backend, ctx, options, nullptr, nullptr, &p);
        ASSERT_LT(found.sets[0][0].size(), static_cast<size_t>(shape.k_lens[0]));
        const BlockLists lists = estimate(backend, ctx, problem, p, &found.sets);
        const Blocks blocks = given(lists, p.block);
        const AttendResult by_hand =
            problem.attend(backend, ctx, &found.sets, options, true, &blocks);
        EXPECT_EQ(by_hand.out.bits(), found.out.bits()) << kind << " " << shape.name();
        EXPECT_EQ(by_hand.lse.bits(), found.lse.bits()) << kind << " " << shape.name();
        const AttendResult tokens = problem.prefill(backend, ctx, options);
        EXPECT_EQ(tokens.sets, found.sets);
        EXPECT_NE(tokens.out.bits(), found.out.bits()) << "no block was left out, kind " << kind;
      }
    }
  }
}

TEST_P(PrefillPattern, WithoutChoiceIsEstimateThenAttendOfEveryToken) {
  for (const Shape& shape : shapes()) {
    for (const int32_t kind : kinds()) {
      Problem problem(shape);
      const tsp_pattern_t p = pattern(kind, TSP_SHARE_HEAD, block());
      const Options options = {.coverage = 0};
      const AttendResult found = problem.prefill(backend, ctx, options, nullptr, nullptr, &p);
      const BlockLists lists = estimate(backend, ctx, problem, p);
      const Blocks blocks = given(lists, p.block);
      EXPECT_GT(listed(lists), 0u);
      const AttendResult by_hand = problem.attend(backend, ctx, nullptr, options, true, &blocks);
      EXPECT_EQ(by_hand.out.bits(), found.out.bits()) << kind << " " << shape.name();
      EXPECT_EQ(by_hand.lse.bits(), found.lse.bits()) << kind << " " << shape.name();
    }
  }
}

TEST_P(PrefillPattern, ThatReadsEverythingIsPrefillWithoutOneBitForBit) {
  for (Shape shape : shapes()) {
    // With 64, Hopper's kernel has other tiles by lists than without: equal to rounding alone.
    if (backend.is_cuda()) shape.dim = 128;
    Problem problem(shape);
    tsp_pattern_t p = pattern(TSP_PATTERN_POOLED, TSP_SHARE_HEAD, block());
    p.threshold = 1;
    const Options options = {
        .window = 16, .min_tokens = 20, .share = TSP_SHARE_KV_GROUP, .coverage = 0.2f};
    const AttendResult all = problem.prefill(backend, ctx, options, nullptr, nullptr, &p);
    const AttendResult none = problem.prefill(backend, ctx, options);
    EXPECT_EQ(none.out.bits(), all.out.bits()) << shape.name();
    EXPECT_EQ(none.lse.bits(), all.lse.bits()) << shape.name();
  }
}

TEST_P(PrefillPattern, BadInputIsNamed) {
  Problem problem(shapes()[0]);
  const auto refusal = [&](const tsp_pattern_t& p, const Options& options,
                           const Blocks* blocks = nullptr) -> std::string {
    try {
      problem.prefill(backend, ctx, options, nullptr, blocks, &p);
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "";
  };
  const Options by_head = {.window = 16, .min_tokens = 20, .coverage = 0.2f};
  const tsp_pattern_t by_group = pattern(TSP_PATTERN_XATTENTION, TSP_SHARE_KV_GROUP, block());
  EXPECT_NE(refusal(by_group, by_head).find("pattern.share: its 2 sets"), std::string::npos);
  tsp_pattern_t p = pattern(TSP_PATTERN_XATTENTION, TSP_SHARE_HEAD, block());
  p.threshold = 0;
  EXPECT_NE(refusal(p, by_head).find("pattern.threshold: must be in"), std::string::npos);
  p = pattern(TSP_PATTERN_XATTENTION, TSP_SHARE_HEAD, block());
  p.stride = 3;
  EXPECT_NE(refusal(p, by_head).find("pattern.stride: must divide"), std::string::npos);
  p = pattern(7, TSP_SHARE_HEAD, block());
  EXPECT_NE(refusal(p, by_head).find("pattern.kind"), std::string::npos);
  const Blocks blocks = problem.random_blocks(nullptr, TSP_SHARE_HEAD, block(), 0.5f, 0, 1);
  p = pattern(TSP_PATTERN_XATTENTION, TSP_SHARE_HEAD, block());
  EXPECT_NE(refusal(p, {.coverage = 0}, &blocks).find("must be null with a pattern"),
            std::string::npos);
  if (!backend.is_cuda()) return;
  p = pattern(TSP_PATTERN_MINFERENCE, TSP_SHARE_HEAD, block());
  EXPECT_NE(refusal(p, by_head).find("attends no single columns"), std::string::npos);
  p = pattern(TSP_PATTERN_POOLED, TSP_SHARE_HEAD, 64);
  EXPECT_NE(refusal(p, by_head).find("pattern.block: backend cuda attends blocks of 128"),
            std::string::npos);
}

TSP_INSTANTIATE_ON_ALL_BACKENDS(PrefillPattern);

}  // namespace
}  // namespace tsp::test
