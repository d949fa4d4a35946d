// SPDX-License-Identifier: MIT
// Pairs counted by formula against pairs counted one by one.
#include "adapters/ggml/pair_count.h"

#include <gtest/gtest.h>

namespace tsp::ggml_adapter {
namespace {

TEST(PairCount, Dense) {
  EXPECT_EQ(dense_pairs(4, 4), 1 + 2 + 3 + 4);
  EXPECT_EQ(dense_pairs(2, 4), 3 + 4);
  EXPECT_EQ(dense_pairs(0, 4), 0);
  EXPECT_EQ(dense_pairs(1, 4), 4);
}

}  // namespace
}  // namespace tsp::ggml_adapter
