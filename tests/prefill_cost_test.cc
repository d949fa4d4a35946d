// SPDX-License-Identifier: MIT
// When choosing tokens pays on the CPU: by lengths before it, by the kept count after it.
#include "cpu/prefill_cost.h"

#include <gtest/gtest.h>

#include "tokensparse/estimate.h"

namespace tsp::cpu {
namespace {

constexpr Costs kBf16 = {0.0074, 0.155, 0.27, 1.4};  // AVX512-BF16's

tsp_prefill_params_t setting() {
  tsp_prefill_params_t p;
  tsp_prefill_params_init(&p, sizeof p);
  p.coverage = 0.1f;
  p.share = TSP_SHARE_KV_GROUP;
  p.dropped = TSP_DROPPED_LOCAL;
  p.sink = 64;
  p.q.heads = 14;
  p.k.heads = 2;
  p.q.dim = 64;
  return p;
}

Seq sequence(int32_t q_len, int32_t k_len) { return {0, 0, q_len, 0, k_len}; }

bool pays(int32_t q_len, int32_t k_len, int32_t kept) {
  return prefill_pays(kBf16, setting(), sequence(q_len, k_len), kept, kept >= 0);
}

TEST(PrefillCost, ShortSequencesAndFewRowsAreExactBeforeAnythingIsScored) {
  for (const int32_t keys : {64, 512, 1024, 1200}) EXPECT_FALSE(pays(keys, keys, -1)) << keys;
  for (const int32_t keys : {4096, 8192, 32768}) {
    EXPECT_TRUE(pays(std::min(keys, 2048), keys, -1)) << keys;
    EXPECT_FALSE(pays(64, keys, -1)) << "the window alone costs more than it can save: " << keys;
    EXPECT_FALSE(pays(1, keys, -1)) << keys;
  }
}

TEST(PrefillCost, AChoiceThatKeepsNearlyAllIsAttendedExactly) {
  for (const int32_t keys : {4096, 8192, 32768}) {
    EXPECT_TRUE(pays(2048, keys, keys / 4));
    EXPECT_TRUE(pays(2048, keys, keys * 9 / 10));
    EXPECT_FALSE(pays(2048, keys, keys));
    EXPECT_FALSE(pays(2048, keys, keys * 99 / 100));
    bool paid = true;  // once it does not, it does not for more either
    for (int32_t kept = keys / 4; kept <= keys; kept += keys / 64) {
      const bool now = pays(2048, keys, kept);
      EXPECT_TRUE(paid || !now) << kept;
      paid = now;
    }
  }
}

TEST(PrefillCost, AFixedShareIsKnownBeforeItIsChosen) {
  tsp_prefill_params_t p = setting();
  p.keep = 0.99f;
  EXPECT_FALSE(prefill_pays(kBf16, p, sequence(2048, 8192), -1, false));
  p.keep = 0.3f;
  EXPECT_TRUE(prefill_pays(kBf16, p, sequence(2048, 8192), -1, false));
  p.min_tokens = 8000;
  EXPECT_FALSE(prefill_pays(kBf16, p, sequence(2048, 8192), -1, false));
}

TEST(PrefillCost, WhereEvenALookIsDearNothingIsLookedAt) {
  EXPECT_FALSE(pays(512, 4096, -1)) << "1 % of exact attention is less than a look";
  EXPECT_TRUE(pays(512, 32768, -1));
  tsp_prefill_params_t p = setting();
  p.keep = 0.3f;  // known without a look
  EXPECT_TRUE(prefill_pays(kBf16, p, sequence(512, 4096), -1, false));
}

TEST(PrefillCost, AGuessMustPayForTheChoiceToo) {
  const auto guess_pays = [](int32_t kept) {
    return prefill_pays(kBf16, setting(), sequence(1024, 8192), kept, false);
  };
  EXPECT_TRUE(guess_pays(4096));
  EXPECT_FALSE(guess_pays(7700));
  EXPECT_TRUE(pays(1024, 8192, 7700)) << "once it is chosen";
}

bool blocks_pay(int32_t kind, int32_t q_len, int32_t k_len, int32_t kept, double listed = -1) {
  tsp_prefill_params_t p = setting();
  tsp_pattern_init(&p.pattern, kind);
  return pattern_pays(p, sequence(q_len, k_len), kept, listed);
}

TEST(PatternCost, FewTokensAreNotEstimated) {
  for (const int32_t kind : {TSP_PATTERN_XATTENTION, TSP_PATTERN_POOLED, TSP_PATTERN_FLASH}) {
    EXPECT_FALSE(blocks_pay(kind, 512, 512, 512)) << kind;
    EXPECT_FALSE(blocks_pay(kind, 2048, 8192, 1000)) << "kept are few: " << kind;
    EXPECT_TRUE(blocks_pay(kind, 8192, 8192, 8192)) << kind;
    EXPECT_TRUE(blocks_pay(kind, 2048, 16384, 5000)) << kind;
  }
}

TEST(PatternCost, BudgetsAsLongAsThePromptAreNotEstimated) {
  EXPECT_FALSE(blocks_pay(TSP_PATTERN_MINFERENCE, 6144, 6144, 6144)) << "6,096 slashes";
  EXPECT_TRUE(blocks_pay(TSP_PATTERN_MINFERENCE, 32768, 32768, 32768));
  EXPECT_FALSE(blocks_pay(TSP_PATTERN_FLEXPREFILL, 2048, 2048, 2048)) << "1,024 of each kind";
  EXPECT_TRUE(blocks_pay(TSP_PATTERN_FLEXPREFILL, 16384, 16384, 16384));
}

TEST(PatternCost, AThresholdThatTakesEverythingIsNotEstimated) {
  tsp_prefill_params_t p = setting();
  tsp_pattern_init(&p.pattern, TSP_PATTERN_XATTENTION);
  p.pattern.threshold = 1;
  EXPECT_FALSE(pattern_pays(p, sequence(8192, 8192), 8192, -1));
}

TEST(PatternCost, ListsThatHoldNearlyEverythingAreNotUsed) {
  for (const double listed : {0.1, 0.5, 0.8}) {
    EXPECT_TRUE(blocks_pay(TSP_PATTERN_XATTENTION, 8192, 8192, 8192, listed)) << listed;
  }
  for (const double listed : {0.9, 1.0}) {
    EXPECT_FALSE(blocks_pay(TSP_PATTERN_XATTENTION, 8192, 8192, 8192, listed)) << listed;
  }
}

}  // namespace
}  // namespace tsp::cpu
