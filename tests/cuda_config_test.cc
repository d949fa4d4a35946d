// SPDX-License-Identifier: MIT
// What the CUDA backend decides without a device: tiles that fit the chips, work cut so that every
// row and key belongs to one block, plan keys that differ where plans must.
#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "cuda/attend/attend_config.h"
#include "cuda/attend/attend_plan.h"
#include "cuda/attend/cudnn_shape.h"
#include "cuda/attend/leftout_line.h"
#include "cuda/attend/sm90/attend_sm90_config.h"
#include "cuda/isa.h"
#include "cuda/prefill_cost.h"
#include "cuda/score/score_config.h"

namespace tsp::cuda {
namespace {

TEST(CudaConfig, ACardOfAnotherGenerationIsServedOrRefusedByName) {
  const auto chosen = [](int major, int minor, const std::string& wanted) {
    Isa isa;
    if (choose_isa(major, minor, wanted, &isa) != TSP_OK ||
        check_isa(wanted, isa.name + (isa.cudnn ? "+cudnn" : "")) != TSP_OK) {
      return std::string(tsp_last_error());
    }
    return isa.name + (isa.warpgroups ? " warpgroups" : "") + (isa.cudnn ? " cudnn" : "");
  };
  EXPECT_EQ(chosen(9, 0, ""), "sm_90 warpgroups");
  EXPECT_EQ(chosen(9, 0, "sm_80"), "sm_80");
  EXPECT_EQ(chosen(9, 0, "sm_90+cudnn"), "sm_90 warpgroups cudnn");
  EXPECT_EQ(chosen(8, 9, ""), "sm_89 cudnn");
  EXPECT_EQ(chosen(8, 0, "sm_80"), "sm_80");
  EXPECT_EQ(chosen(10, 0, ""), "sm_100 cudnn") << "no wgmma after Hopper";
  EXPECT_EQ(chosen(12, 0, "sm_80"), "sm_80");
  EXPECT_EQ(chosen(8, 6, "sm_90"), "isa: must be one this machine has (sm_86), got \"sm_90\"");
  EXPECT_EQ(chosen(10, 0, "sm_90"), "isa: must be one this machine has (sm_100), got \"sm_90\"");
  EXPECT_EQ(chosen(7, 5, ""), "device: must have compute capability 8.0 or later, got 7.5");
}

TEST(CudaConfig, ChoosingPaysWhereExactAttentionIsLongEnough) {
  EXPECT_FALSE(prefill_may_pay(2048, 2048, 32, 128));
  EXPECT_TRUE(prefill_may_pay(4096, 4096, 32, 128));
  EXPECT_FALSE(prefill_may_pay(4096, 4096, 12, 128)) << "as long, and fewer heads";
  EXPECT_TRUE(prefill_may_pay(6144, 6144, 12, 128));
  EXPECT_FALSE(prefill_may_pay(4096, 4096, 14, 64));
  EXPECT_TRUE(prefill_may_pay(6144, 6144, 14, 64));
  EXPECT_TRUE(prefill_may_pay(2048, 8192, 14, 64)) << "a chunk of a long prompt";
  EXPECT_FALSE(prefill_may_pay(1024, 8192, 32, 128));
  EXPECT_FALSE(prefill_may_pay(512, 131072, 32, 128)) << "the window is most of its queries";
  bool paid = false;  // once it does, it does for more keys too
  for (int32_t keys = 1024; keys <= 65536; keys += 512) {
    const bool now = prefill_may_pay(1024, keys, 14, 64);
    EXPECT_TRUE(!paid || now) << keys;
    paid = now;
  }
  EXPECT_TRUE(paid);
}

TEST(CudaConfig, ChoosingPaysTheLessTheMoreTokensStay) {
  EXPECT_TRUE(prefill_pays(8192, 8192, 12, 128, 0.25f));
  EXPECT_FALSE(prefill_pays(8192, 8192, 12, 128, 0.9f));
  EXPECT_TRUE(prefill_pays(32768, 32768, 12, 128, 0.9f));
  EXPECT_FALSE(prefill_pays(131072, 131072, 32, 128, 1.f)) << "nothing is saved";
  for (const float keep : {0.01f, 0.1f, 0.25f}) {  // never more than the shape alone says
    EXPECT_EQ(prefill_pays(5120, 5120, 12, 128, keep), prefill_may_pay(5120, 5120, 12, 128));
  }
}

TEST(CudaConfig, TilesFitSharedMemory) {
  EXPECT_LE(attend_shared_bytes(128), kSmallestBlockLimit);
  EXPECT_LE(attend_shared_bytes(64), kSmallestBlockLimit);
  EXPECT_LE(kAttendBlocksPerSm * (attend_shared_bytes(128) + 1024), size_t{228} * 1024)
      << "compute capability 9.0";
}

TEST(CudaConfig, TilesAreWholeMatrices) {
  static_assert(kAttendTileQ == kAttendWarps * 32);
  static_assert(kAttendTileKv % 16 == 0 && kScoreTileKeys % 16 == 0 && kScoreUnitRows % 8 == 0);
  for (const int chunks : {8, 16}) {  // every thread copies whole 16-byte chunks
    EXPECT_EQ(kAttendTileKv * chunks % kAttendThreads, 0);
    EXPECT_EQ(kScoreTileKeys * chunks % kScoreThreads, 0);
  }
}

TEST(CudaConfig, WarpgroupAttendVisitsEveryTileOnceLongestFirst) {
  for (const int32_t heads : {1, 3, 8, 32}) {
    for (const int32_t group : {1, 2, 4}) {
      if (heads % group != 0) continue;
      for (const int32_t rows : {0, 1, 128, 129, 5000}) {
        const Sm90Order order = make_sm90_order(heads, group, rows, 40000, 128, 192);
        EXPECT_EQ(order.num_items(), heads * ((rows + 191) / 192));
        std::set<std::pair<int32_t, int32_t>> seen;
        for (int32_t item = 0; item < order.num_items(); ++item) {
          const Sm90Work work = order.at(item);
          EXPECT_TRUE(work.head >= 0 && work.head < heads);
          EXPECT_TRUE(work.tile >= 0 && work.tile < order.num_tiles);
          EXPECT_TRUE(seen.emplace(work.head, work.tile).second);
          if (item == 0 ||
              work.head / order.section_heads != order.at(item - 1).head / order.section_heads) {
            EXPECT_EQ(work.tile, order.num_tiles - 1) << "a section begins with its longest tile";
          } else {
            EXPECT_LE(work.tile, order.at(item - 1).tile);
          }
        }
        EXPECT_EQ(static_cast<int32_t>(seen.size()), order.num_items());
      }
    }
  }
}

TEST(CudaConfig, WarpgroupAttendWorksOnHeadsThatFitTheCache) {
  EXPECT_EQ(make_sm90_order(32, 4, 16384, 16384, 128, 128).section_heads, 16) << "4 x 8 MiB";
  EXPECT_EQ(make_sm90_order(32, 4, 131072, 131072, 128, 128).section_heads, 4) << "one, at least";
  EXPECT_EQ(make_sm90_order(32, 1, 100, 0, 64, 128).section_heads, 32);
  for (const int head_dim : {64, 128}) {
    for (const bool lists : {false, true}) {
      const Sm90Shape shape = sm90_shape(head_dim, lists);
      const int at_start = 65536 / shape.threads() / 8 * 8;
      EXPECT_LE(shape.producer_registers() + shape.consumers * shape.consumer_registers(),
                (1 + shape.consumers) * at_start);
      EXPECT_TRUE(!lists || shape.tile_q() == kSm90TileKv);
    }
  }
}

TEST(CudaConfig, ScoreCoversEveryHeadAndRow) {
  for (const bool warpgroups : {false, true})
    for (const int32_t window : {1, 31, 32, 33, 128, 500, 512, 513, 4000}) {
      for (const int32_t group : {1, 2, 4, 7, 8, 16, 32}) {
        for (const int32_t kv_heads : {1, 2, 8, 32}) {
          const ScorePlan plan =
              plan_score(window, 32768, 32768 - window, kv_heads, group, 132, warpgroups);
          EXPECT_GE(plan.stat_rows, window);
          EXPECT_LT(plan.stat_rows - window, kScoreUnitRows);
          EXPECT_GE(plan.head_blocks * plan.heads_per_block, group);
          EXPECT_LT((plan.head_blocks - 1) * plan.heads_per_block, group) << "an idle block";
          EXPECT_GE(plan.rounds * kScoreWarps, plan.units_per_head * plan.heads_per_block);
          EXPECT_TRUE(plan.rounds == 1 || plan.heads_per_block == 1);
          EXPECT_EQ(plan.wide, warpgroups && window <= kWideKeys &&
                                   kv_heads * ceil_div(group, kWideHeads) <= 132);
          EXPECT_TRUE(!plan.wide || plan.heads_per_block <= kWideHeads);
          EXPECT_GE(plan.stat_chunks, 1);
          EXPECT_LE(plan.stat_chunks * plan.head_blocks * kv_heads,
                    std::max(132, plan.head_blocks * kv_heads))
              << "more than one wave";
        }
      }
    }
  // Llama-3.1-8B on 132 multiprocessors: one K tile serves all four heads, 128 blocks.
  const ScorePlan llama = plan_score(128, 32768, 32640, 8, 4, 132, true);
  EXPECT_TRUE(llama.wide);
  EXPECT_EQ(llama.head_blocks, 1);
  EXPECT_EQ(llama.heads_per_block * llama.units_per_head, kScoreWarps);
  EXPECT_EQ(llama.stat_chunks, 16);
  EXPECT_EQ(plan_score(128, 130, 2, 8, 4, 132, false).mass_chunks, 1) << "no block without a tile";
  EXPECT_TRUE(plan_score(128, 32768, 32640, 132, 4, 132, true).wide);
  EXPECT_FALSE(plan_score(128, 32768, 32640, 133, 4, 132, true).wide) << "more than fit at once";
  EXPECT_FALSE(plan_score(128, 32768, 32640, 67, 5, 132, true).wide);
}

TEST(CudaConfig, BucketsCoverALengthAndAddLittle) {
  EXPECT_EQ(length_bucket(1), 128);
  EXPECT_EQ(length_bucket(32768), 32768);
  EXPECT_EQ(length_bucket(32769), 36864);
  EXPECT_EQ(length_bucket(1 << 20), 1 << 20);
  int32_t previous = 0;
  std::set<int32_t> buckets;
  for (int32_t len = 1; len < 300000; len += 7) {
    const int32_t bucket = length_bucket(len);
    EXPECT_GE(bucket, len);
    EXPECT_GE(bucket, previous);
    EXPECT_TRUE(len < 1024 || bucket - len <= len / 8) << len;
    EXPECT_EQ(length_bucket(bucket), bucket);
    previous = bucket;
    buckets.insert(bucket);
  }
  EXPECT_LT(buckets.size(), 80u);
}

TEST(CudaConfig, GroupsHoldTheBudgetAndAreBalanced) {
  EXPECT_EQ(units_per_group(32, 24, 384), 16);
  EXPECT_EQ(units_per_group(32, 32, 384), 11) << "12, 12, 8 would leave the last group short";
  EXPECT_EQ(units_per_group(8, 1000, 1), 1) << "one unit always";
  EXPECT_EQ(units_per_group(8, 1, 1 << 20), 8);
  for (int32_t units = 1; units < 70; ++units) {
    for (int64_t budget = 1; budget < 80; ++budget) {
      const int32_t count = units_per_group(units, 1, budget);
      EXPECT_LE(count, std::max<int64_t>(budget, 1));
      const int32_t groups = (units + count - 1) / count;
      EXPECT_EQ(groups,
                (units + std::min<int64_t>(units, budget) - 1) / std::min<int64_t>(units, budget));
    }
  }
}

constexpr AttendSizes kLlama = {
    .q_len = 32768, .k_len = 32768, .q_heads = 32, .kv_heads = 8, .head_dim = 128};

constexpr Engines kNone = {}, kCudnn = {.cudnn = true}, kHopper = {.sm90 = true},
                  kBoth = {.cudnn = true, .sm90 = true};

TEST(CudaConfig, AttendPicksItsEngine) {
  AttendSizes sizes = kLlama;
  EXPECT_EQ(plan_attend(sizes, kNone).engine, Engine::kOwn);
  EXPECT_EQ(plan_attend(sizes, kHopper).engine, Engine::kSm90);
  EXPECT_EQ(plan_attend(sizes, kCudnn).engine, Engine::kCudnnDirect);
  EXPECT_EQ(plan_attend(sizes, kBoth).engine, Engine::kCudnnDirect) << "it was asked for";
  EXPECT_FALSE(plan_attend(sizes, kHopper).gather) << "reads the caller's K";
  sizes.paged = true;
  EXPECT_EQ(plan_attend(sizes, kCudnn).engine, Engine::kCudnnGroups) << "cuDNN reads no blocks";
  EXPECT_TRUE(plan_attend(sizes, kHopper).gather) << "and the copy engine neither";
  sizes.paged = false;
  for (const int32_t sets : {1, 8, 32}) {
    sizes.num_sets = sets;
    EXPECT_EQ(plan_attend(sizes, kCudnn).engine, Engine::kCudnnGroups);
    EXPECT_EQ(plan_attend(sizes, kNone).engine, Engine::kOwn);
    EXPECT_EQ(plan_attend(sizes, kHopper).engine, Engine::kSm90);
    EXPECT_TRUE(plan_attend(sizes, kHopper).gather);
  }
  sizes.k_len = sizes.q_len = kCudnnMinKeys - 1;
  EXPECT_EQ(plan_attend(sizes, kCudnn).engine, Engine::kOwn) << "too short";
  EXPECT_EQ(plan_attend(sizes, kBoth).engine, Engine::kSm90);
}

TEST(CudaConfig, AttendCutsHeadsIntoUnitsAndGroups) {
  for (const int32_t sets : {0, 1, 8, 32}) {
    for (const int32_t len : {1024, 5000, 32768, 65536, 65537, 131072}) {
      AttendSizes sizes = kLlama;
      sizes.num_sets = sets;
      sizes.q_len = sizes.k_len = len;
      sizes.paged = true;
      const AttendPlan plan = plan_attend(sizes, kCudnn);
      EXPECT_EQ(plan.units * plan.q_heads, 32);
      EXPECT_EQ(plan.units, 8 * plan.per_kv);
      EXPECT_EQ(plan.units, std::max(sets, 8));
      EXPECT_GE(plan.flag_stride * kFlagRows, len);
      EXPECT_GE(plan.capacity, len);
      EXPECT_GE(plan.q_capacity, len);
      EXPECT_EQ(plan.q_in_out, length_bucket(len) == len);
      EXPECT_GE(plan.group_units, 1);
      EXPECT_LE(plan.group_units, plan.units);
      EXPECT_EQ(plan.lanes, plan.group_units < plan.units ? kMaxLanes : 1);
      const AttendPlan sm90 = plan_attend(sizes, kHopper);
      EXPECT_GE(sm90.group_units, plan.group_units) << "no copies of Q and O";
      const double copies = 2.0 * sm90.group_units * sm90.capacity / (32.0 * len);
      EXPECT_LE(copies, len > kLongKeys ? kGroupShareLong : kGroupShare);
      EXPECT_EQ(sm90.lanes, 1);
    }
  }
  AttendSizes sizes = kLlama;
  sizes.num_sets = 8;
  EXPECT_EQ(plan_attend(sizes, kCudnn).group_units, 4) << "two lanes of 4 fill 1.5 times Q";
}

/// Against the definition: row i sees the keys j < sink and i - band < j <= i, each once.
void check_key_line(const std::vector<int32_t>& rows, int32_t k_len, int32_t sink, int32_t band) {
  sink = std::min(sink, k_len);
  band = std::min(band, k_len);
  const int32_t first = rows.front(), last = rows.back();
  const KeyLine line = make_key_line(first, last, sink, band);
  ASSERT_GE(line.count, 1);
  for (int32_t n = 0; n < line.count; ++n) {  // a K tile is consecutive keys
    ASSERT_EQ(line.key(n), line.key(n / kLeftOutKeys * kLeftOutKeys) + n % kLeftOutKeys);
    ASSERT_GE(line.key(n), 0);
  }
  ASSERT_EQ(line.key(line.count - 1), last);
  for (const int32_t i : rows) {
    std::set<int32_t> seen;
    for (int32_t n = 0; n < line.count + kLeftOutKeys; ++n) {  // and what fills up a tile
      if (sees(n, i - line.shift, sink, band)) {
        ASSERT_LT(n, line.count);
        ASSERT_TRUE(seen.insert(line.key(n)).second);
      }
    }
    for (int32_t j = 0; j < k_len; ++j) {
      ASSERT_EQ(seen.count(j) == 1, j <= i && (j < sink || j > i - band))
          << "row " << i << ", key " << j << ", sink " << sink << ", band " << band;
    }
  }
  for (int32_t n = 0; n < line.count; n += kLeftOutKeys) {
    int32_t pairs = 0;
    for (const int32_t i : rows) {
      for (int32_t c = n; c < n + kLeftOutKeys; ++c) {
        pairs += sees(c, i - line.shift, sink, band) ? 1 : 0;
      }
    }
    const auto all = static_cast<int32_t>(rows.size()) * kLeftOutKeys;
    ASSERT_TRUE(!line.all_see(n, first, last, sink, band) || pairs == all) << n;
    ASSERT_TRUE(!line.none_sees(n, first, last, sink, band) || pairs == 0) << n;
  }
}

TEST(CudaConfig, LeftOutRowsSeeEachOfTheirKeysOnce) {
  for (const int32_t sink : {0, 1, 5, 64, 100, 333, 4000}) {
    for (const int32_t band : {1, 2, 37, 256, 300, 0x7fffffff}) {
      for (const int32_t begin : {0, 1, 40, 63, 64, 99, 255, 256, 300, 390}) {
        check_key_line({begin}, 400, sink, band);
        check_key_line({begin, begin + 1, begin + 3, begin + 9}, 400, sink, band);
        std::vector<int32_t> wide;
        for (int32_t i = begin; i < 400; i += 1 + i % 3) wide.push_back(i);
        check_key_line(wide, 400, sink, band);
      }
    }
  }
  // The setting that is measured: a tile of 32 rows of four heads needs six K tiles.
  const KeyLine line = make_key_line(20000, 20041, 64, 256);
  EXPECT_EQ((line.count + kLeftOutKeys - 1) / kLeftOutKeys, 6);
  EXPECT_FALSE(line.none_sees(0, 20000, 20041, 64, 256));
  EXPECT_TRUE(line.all_see(0, 20000, 20041, 64, 256)) << "first keys need no mask";
}

TEST(CudaConfig, LeftOutRowsOfHeadsThatShareEverythingShareATile) {
  EXPECT_EQ(left_out_pack(4, 4), 4) << "a set per KV head";
  EXPECT_EQ(left_out_pack(4, 32), 4) << "one set: still one KV head a tile";
  EXPECT_EQ(left_out_pack(4, 1), 1) << "a set per head";
  EXPECT_EQ(left_out_pack(7, 7), 7);
  EXPECT_EQ(left_out_pack(200, 200), 1) << "more heads than rows of a tile";
}

TEST(CudaConfig, PlanKeysDifferWherePlansDo) {
  CudnnShape base;
  base.q_len = base.kv_len = 4096;
  base.q_heads = 32;
  base.kv_heads = 8;
  std::set<size_t> hashes = {hash_of(base)};
  size_t variants = 1;
  const auto vary = [&](auto&& change) {
    CudnnShape shape = base;
    change(shape);
    EXPECT_FALSE(shape == base);
    hashes.insert(hash_of(shape));
    ++variants;
  };
  vary([](CudnnShape& s) { s.dtype = TSP_F16; });
  vary([](CudnnShape& s) { s.head_dim = 64; });
  vary([](CudnnShape& s) { s.batch = 2; });
  vary([](CudnnShape& s) { s.q_heads = 16; });
  vary([](CudnnShape& s) { s.kv_heads = 4; });
  vary([](CudnnShape& s) { s.q_len = 2048; });
  vary([](CudnnShape& s) { s.kv_len = 2048; });
  vary([](CudnnShape& s) { s.with_lse = true; });
  vary([](CudnnShape& s) { s.padded = false; });
  vary([](CudnnShape& s) { s.scale = 0.5f; });
  vary([](CudnnShape& s) { s.q.token = 1; });
  vary([](CudnnShape& s) { s.k.token = 1; });
  vary([](CudnnShape& s) { s.v.head = 1; });
  vary([](CudnnShape& s) { s.out.batch = 1; });
  vary([](CudnnShape& s) { s.lse.head = 1; });
  EXPECT_EQ(hashes.size(), variants);
  EXPECT_EQ(hash_of(base), hash_of(CudnnShape(base)));
}

}  // namespace
}  // namespace tsp::cuda
