// SPDX-License-Identifier: MIT
// tsp_attend() and tsp_prefill() by block sets: which pairs are computed, and which lists are
// refused.
#include <functional>

#include "tests/support/device_blocks.h"
#include "tests/support/op_test.h"

namespace tsp::test {
namespace {

class BlockSets : public OpTest {
 protected:
  /// As every backend takes them; with columns on the CPU.
  Blocks own_blocks(const Problem& problem, const Sets* sets) {
    const bool cuda = backend.is_cuda();
    return problem.random_blocks(sets, TSP_SHARE_HEAD, cuda ? 128 : 32, 0.4f, cuda ? 0 : 0.1f, 4);
  }
  void check(const Problem& problem, const Sets* sets, const Options& options,
             const Blocks& blocks) {
    if (!serves(backend, problem.shape)) return;
    Problem same(problem.shape);
    served_or_refused("blocks", [&] {
      const AttendResult got = same.attend(backend, ctx, sets, options, true, &blocks);
      const Roundoff u = roundoff(backend, problem.shape, options.precision);
      expect_attend(oracle_attend(problem, sets, options, u.operand, u.weight, &blocks), got,
                    problem.shape.name() + ", block " + std::to_string(blocks.block));
    });
  }
};

std::vector<Shape> shapes() {
  const int32_t f16 = TSP_F16, bf16 = TSP_BF16;
  return {
      {.q_lens = {1}, .k_lens = {1}},
      {.q_lens = {1}, .k_lens = {300}},
      {.q_lens = {300}, .k_lens = {300}, .dim = 40},
      {.q_lens = {130}, .k_lens = {300}, .num_q_heads = 6, .num_kv_heads = 2, .dim = 80},
      {.q_lens = {257}, .k_lens = {600}, .num_q_heads = 2, .num_kv_heads = 1, .dim = 128},
      {.q_lens = {70}, .k_lens = {150}, .num_q_heads = 2, .num_kv_heads = 2, .dim = 256},
      {.q_lens = {100}, .k_lens = {613}, .q_dtype = bf16, .kv_dtype = bf16, .out_dtype = bf16},
      {.q_lens = {300, 130},
       .k_lens = {900, 333},
       .num_q_heads = 6,
       .num_kv_heads = 2,
       .dim = 128,
       .q_dtype = bf16,
       .kv_dtype = bf16,
       .out_dtype = bf16},
      {.q_lens = {1, 64, 0, 129}, .k_lens = {17, 64, 12, 400}},
      {.q_lens = {90, 140}, .k_lens = {150, 141}, .kv_dtype = f16, .kv_layout = Layout::kPaged},
      {.q_lens = {90},
       .k_lens = {250},
       .q_layout = Layout::kDimStrided,
       .kv_layout = Layout::kHeadMajor},
  };
}

constexpr int32_t kShares[] = {TSP_SHARE_HEAD, TSP_SHARE_KV_GROUP, TSP_SHARE_LAYER};

TEST_P(BlockSets, OfPositionsMatchTheOracle) {
  for (const Shape& shape : shapes()) {
    const Problem problem(shape);
    int32_t seed = 1;
    for (const int32_t block : {16, 48, 128}) {
      const int32_t share = kShares[seed % 3];
      const auto at = static_cast<uint32_t>(seed++);
      check(problem, nullptr, {}, problem.random_blocks(nullptr, share, block, 0.3f, 0, at));
    }
  }
}

TEST_P(BlockSets, WithColumnsMatchTheOracle) {
  for (const Shape& shape : shapes()) {
    const Problem problem(shape);
    for (const float columns : {0.02f, 0.5f, 1.0f}) {
      check(problem, nullptr, {},
            problem.random_blocks(nullptr, TSP_SHARE_HEAD, 32, 0.2f, columns, 5));
    }
  }
}

TEST_P(BlockSets, MoreColumnsThanAreGatheredAtATimeMatchTheOracle) {
  const Problem problem({.q_lens = {100}, .k_lens = {2600}, .num_q_heads = 1, .num_kv_heads = 1});
  for (const float density : {0.0f, 0.8f}) {
    check(problem, nullptr, {},
          problem.random_blocks(nullptr, TSP_SHARE_LAYER, 128, density, 0.6f, 5));
  }
}

TEST_P(BlockSets, OfKeptEntriesMatchTheOracle) {
  for (const Shape& shape : shapes()) {
    const Problem problem(shape);
    for (const int32_t share : kShares) {
      const Sets sets = problem.random_sets(share, 0.45f, 16, 5);
      check(problem, &sets, {}, problem.random_blocks(&sets, TSP_SHARE_HEAD, 16, 0.3f, 0.1f, 6));
      check(problem, &sets, {.dropped = TSP_DROPPED_LOCAL, .band = 37, .sink = 5},
            problem.random_blocks(&sets, share, 48, 0.3f, 0, 7));
      check(problem, &sets, {.dropped = TSP_DROPPED_LOCAL, .band = 37, .sink = 5},
            problem.random_blocks(&sets, share, 128, 0.3f, 0, 8));
    }
  }
}

TEST_P(BlockSets, Bf16ArithmeticMatchesTheOracle) {
  if (backend.backend == TSP_BACKEND_CPU && !backend.has_bf16()) return;
  for (const int64_t dim : {40, 64, 80, 128, 256}) {
    const Problem problem({.q_lens = {150}, .k_lens = {360}, .dim = dim, .kv_dtype = TSP_F16});
    const Sets sets = problem.random_sets(TSP_SHARE_KV_GROUP, 0.6f, 16, 5);
    check(problem, nullptr, {.precision = TSP_PRECISION_BF16},
          problem.random_blocks(nullptr, TSP_SHARE_HEAD, 32, 0.3f, 0.1f, 3));
    check(problem, &sets,
          {.dropped = TSP_DROPPED_LOCAL, .band = 37, .sink = 5, .precision = TSP_PRECISION_BF16},
          problem.random_blocks(&sets, TSP_SHARE_HEAD, 128, 0.3f, 0, 3));
  }
}

TEST_P(BlockSets, ThatListEverythingAreDenseBitForBit) {
  for (const Shape& shape : shapes()) {
    if (!serves(backend, shape)) continue;
    // Hopper's kernel has other tiles for heads of 64 channels where it follows lists.
    if (backend.is_cuda() && shape.dim == 64) continue;
    Problem problem(shape);
    const Sets sets = problem.random_sets(TSP_SHARE_KV_GROUP, 0.45f, 16, 5);
    for (const Sets* selected : {static_cast<const Sets*>(nullptr), &sets}) {
      const AttendResult dense = problem.attend(backend, ctx, selected, {});
      for (const int32_t block : {16, 64, 128, 512}) {
        for (const float columns : {0.0f, 0.1f}) {
          const Blocks all =
              problem.random_blocks(selected, TSP_SHARE_KV_GROUP, block, 1, columns, 5);
          served_or_refused("blocks", [&] {
            const AttendResult same = problem.attend(backend, ctx, selected, {}, true, &all);
            EXPECT_EQ(dense.out.bits(), same.out.bits()) << shape.name() << ", block " << block;
            EXPECT_EQ(dense.lse.bits(), same.lse.bits()) << shape.name() << ", block " << block;
          });
        }
      }
    }
  }
}

TEST_P(BlockSets, RepeatsAndThreadCountsGiveTheSameBits) {
  const int32_t dtype = backend.is_cuda() ? TSP_BF16 : TSP_F32;
  Problem problem(
      {.q_lens = {190}, .k_lens = {333}, .q_dtype = dtype, .kv_dtype = dtype, .out_dtype = dtype});
  const Sets sets = problem.random_sets(TSP_SHARE_HEAD, 0.5f, 16, 9);
  const Blocks blocks = own_blocks(problem, &sets);
  const Options options = {.dropped = TSP_DROPPED_LOCAL, .band = 20};
  served_or_refused("blocks", [&] {
    const auto bits = problem.attend(backend, ctx, &sets, options, true, &blocks).out.bits();
    for (int repeat = 0; repeat < 20; ++repeat) {
      tokensparse::Context other = backend.open(1 + repeat % 4);
      ASSERT_EQ(bits, problem.attend(backend, other, &sets, options, true, &blocks).out.bits());
    }
  });
}

TEST_P(BlockSets, PrefillIsAttendByThem) {
  const int32_t dtype = backend.is_cuda() ? TSP_BF16 : TSP_F32;
  Problem problem(
      {.q_lens = {150}, .k_lens = {260}, .q_dtype = dtype, .kv_dtype = dtype, .out_dtype = dtype});
  const Sets sets = problem.random_sets(TSP_SHARE_KV_GROUP, 0.5f, 16, 9);
  for (const Sets* given : {static_cast<const Sets*>(nullptr), &sets}) {
    const Blocks blocks = own_blocks(problem, given);
    served_or_refused("blocks", [&] {
      const AttendResult attend = problem.attend(backend, ctx, given, {}, true, &blocks);
      const AttendResult prefill = problem.prefill(backend, ctx, {.coverage = 0}, given, &blocks);
      EXPECT_EQ(attend.out.bits(), prefill.out.bits());
      EXPECT_EQ(attend.lse.bits(), prefill.lse.bits());
    });
  }
}

TSP_INSTANTIATE_ON_ALL_BACKENDS(BlockSets);

/// Tq 40, Tk 72, block 16: query blocks 32 .. 47, 48 .. 63 and 64 .. 71.
class BlockErrors : public ::testing::Test {
 protected:
  void refuse(const std::function<void(tokensparse::AttendParams&)>& spoil,
              const std::string& sentence) {
    Blocks spoiled = blocks;
    refuse(spoiled, spoil, sentence);
  }
  void refuse(const std::function<void(Blocks&)>& change, const std::string& sentence) {
    Blocks spoiled = blocks;
    change(spoiled);
    refuse(
        spoiled, [](tokensparse::AttendParams&) {}, sentence);
  }
  void refuse(const Blocks& lists, const std::function<void(tokensparse::AttendParams&)>& spoil,
              const std::string& sentence) {
    const DeviceBlocks memory(host, lists);
    tokensparse::AttendParams p;
    std::vector<float> out(40 * 4 * 64);
    p.q = problem.q.view();
    p.k = problem.k.view();
    p.v = problem.v.view();
    p.out = tokensparse::view(out.data(), 40, 4, 64);
    p.blocks = memory.view();
    if (lists == blocks) {
      ASSERT_EQ(tokensparse::attend(ctx, p).message(), "");
    }
    spoil(p);
    const tokensparse::Status status = tokensparse::attend(ctx, p);
    EXPECT_EQ(status.code(), TSP_INVALID_ARGUMENT) << sentence;
    EXPECT_EQ(status.message(), sentence);
  }
  const Backend host{"ref", TSP_BACKEND_REF, "", nullptr};
  tokensparse::Context ctx = host.open();
  Problem problem{Shape{.q_lens = {40}, .k_lens = {72}}};
  const Blocks blocks = problem.random_blocks(nullptr, TSP_SHARE_KV_GROUP, 16, 0.5f, 0.1f, 4);
};

using Params = tokensparse::AttendParams;

TEST_F(BlockErrors, NameTheField) {
  refuse([](Params& p) { p.blocks.block = 24; },
         "blocks.block: must be a multiple of 16 between 16 and 512 (0 = 128), got 24");
  refuse([](Params& p) { p.blocks.block = 528; },
         "blocks.block: must be a multiple of 16 between 16 and 512 (0 = 128), got 528");
  refuse([](Params& p) { p.blocks.num_sets = 3; },
         "blocks.num_sets: must be Hq (4), Hkv (2) or 1, got 3");
  refuse([](Params& p) { p.blocks.row_stride = -1; },
         "blocks.row_stride: must be between 0 and 1099511627776, got -1");
  refuse([](Params& p) { p.blocks.counts = nullptr; },
         "blocks.counts: must not be null with blocks.blocks");
  refuse([](Params& p) { p.blocks.num_columns = nullptr; },
         "blocks.num_columns: must not be null with blocks.columns");
  refuse([](Params& p) { p.blocks.blocks = nullptr; },
         "blocks.counts: must be null without blocks.blocks");
}

TEST_F(BlockErrors, NameTheListAndTheEntry) {
  refuse([](Blocks& b) { b.rows[0][1][1] = {}; },
         "blocks.counts: must be between 1 and the key blocks up to the query block's last entry "
         "(4); sequence 0, set 1, query block 1 has 0");
  refuse(
      [](Blocks& b) {
        b.rows[0][1][1] = {0, 2, 1, 3};
      },
      "blocks.blocks: must ascend within 0 .. 3, the key block of the last entry; sequence 0, "
      "set 1, query block 1, entry 2 is 1 after 2");
  refuse(
      [](Blocks& b) {
        b.rows[0][0][0] = {2, 2};
      },
      "blocks.blocks: must ascend within 0 .. 2, the key block of the last entry; sequence 0, "
      "set 0, query block 0, entry 1 is 2 after 2");
  refuse(
      [](Blocks& b) {
        b.rows[0][0][2] = {-1, 4};
      },
      "blocks.blocks: must ascend within 0 .. 4, the key block of the last entry; sequence 0, "
      "set 0, query block 2, entry 0 is -1 after -1");
  refuse(
      [](Blocks& b) {
        b.rows[0][0][0] = {2, 3};
      },
      "blocks.blocks: must ascend within 0 .. 2, the key block of the last entry; sequence 0, "
      "set 0, query block 0, entry 1 is 3 after 2");
  refuse(
      [](Blocks& b) {
        b.rows[0][1][2] = {0, 1};
      },
      "blocks.blocks: must list the key blocks that hold the query block's own entries, 4 .. 4; "
      "sequence 0, set 1, query block 2 lists 0 of them");
  refuse(
      [](Blocks& b) {
        b.columns[0][1] = {3, 3};
      },
      "blocks.columns: must ascend within 0 .. 71; sequence 0, set 1, entry 1 is 3 after 3");
  refuse(
      [](Blocks& b) {
        b.columns[0][0] = {3, 72};
      },
      "blocks.columns: must ascend within 0 .. 71; sequence 0, set 0, entry 1 is 72 after 3");
}

TEST_F(BlockErrors, NameWhatPrefillWouldChoose) {
  const Blocks of_positions = problem.random_blocks(nullptr, TSP_SHARE_HEAD, 16, 0.5f, 0, 4);
  const auto refused = [&](const Options& options, const Blocks& lists) {
    try {
      problem.prefill(host, ctx, options, nullptr, &lists);
    } catch (const std::runtime_error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  EXPECT_EQ(refused({.coverage = 0}, of_positions), "");
  EXPECT_EQ(refused({.coverage = 0.5f}, of_positions),
            "blocks.blocks: must be null where tokens are chosen (give `given`, or coverage = 0 "
            "and keep = 0), got coverage 0.5 and keep 0");
  EXPECT_EQ(refused({.coverage = 0, .when = TSP_WHEN_PAYS}, of_positions),
            "when: must be 0 (always) with blocks, got 1");
  Blocks unsorted = of_positions;
  unsorted.rows[0][1][1] = {0, 2, 1, 3};
  EXPECT_EQ(refused({.coverage = 0}, unsorted),
            "blocks.blocks: must ascend within 0 .. 3, the key block of the last entry; sequence "
            "0, set 1, query block 1, entry 2 is 1 after 2");
}

}  // namespace
}  // namespace tsp::test
