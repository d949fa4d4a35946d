// SPDX-License-Identifier: MIT
// Pairs counted by formula against pairs counted one by one.
#include "adapters/ggml/pair_count.h"

#include <gtest/gtest.h>

#include <random>
#include <set>
#include <vector>

namespace tsp::ggml_adapter {
namespace {

TEST(PairCount, Dense) {
  EXPECT_EQ(dense_pairs(4, 4), 1 + 2 + 3 + 4);
  EXPECT_EQ(dense_pairs(2, 4), 3 + 4);
}

TEST(PairCount, EqualsCountingOneByOne) {
  std::mt19937 random(1);
  for (int round = 0; round < 300; ++round) {
    const auto below = [&](int bound) {
      return static_cast<int>(random() % static_cast<unsigned>(bound));
    };
    const int keys = 1 + below(60), rows = 1 + below(keys), sets = 1 + below(3);
    tsp_prefill_params_t params;
    tsp_prefill_params_init(&params, sizeof params);
    params.dropped = below(2);
    params.sink = below(8);
    params.band = 1 + below(20);
    int32_t kept = 1 + below(keys);
    std::vector<int32_t> indices(static_cast<size_t>(sets * keys), -1);
    double pairs = 0;
    for (int set = 0; set < sets; ++set) {
      std::set<int> chosen;
      while (chosen.size() < static_cast<size_t>(kept)) chosen.insert(below(keys));
      std::copy(chosen.begin(), chosen.end(), indices.begin() + set * keys);
      for (int i = keys - rows; i < keys; ++i) {
        for (int j = 0; j <= i; ++j) {
          const bool near = j < params.sink || j > i - params.band;
          pairs +=
              chosen.contains(i) ? chosen.contains(j) : params.dropped == TSP_DROPPED_LOCAL && near;
        }
      }
    }
    params.selected = {indices.data(), &kept, sets, 0, keys, 0};
    EXPECT_DOUBLE_EQ(computed_pairs(params, rows, keys), pairs / sets);
  }
}

}  // namespace
}  // namespace tsp::ggml_adapter
