// SPDX-License-Identifier: MIT
// tsp_compress(): rows and zeros in the right places, bits unchanged.
#include <cmath>

#include "tests/support/op_test.h"

namespace tsp::test {
namespace {

class Compress : public OpTest {};

std::vector<Shape> shapes() {
  const int32_t f16 = TSP_F16, bf16 = TSP_BF16;
  return {
      {.q_lens = {90}, .k_lens = {90}, .num_q_heads = 6, .num_kv_heads = 2, .dim = 40},
      {.q_lens = {60}, .k_lens = {200}, .q_dtype = bf16, .kv_dtype = bf16, .out_dtype = bf16},
      {.q_lens = {60, 33},
       .k_lens = {200, 33},
       .num_q_heads = 8,
       .num_kv_heads = 2,
       .dim = 128,
       .q_dtype = f16,
       .kv_dtype = f16,
       .out_dtype = f16},
      {.q_lens = {60, 33},
       .k_lens = {200, 40},
       .q_dtype = bf16,
       .kv_dtype = bf16,
       .out_dtype = bf16,
       .kv_layout = Layout::kPaged},
      {.q_lens = {0, 70, 0, 0, 33, 0}, .k_lens = {0, 90, 41, 0, 33, 12}},
      {.q_lens = {77},
       .k_lens = {99},
       .q_layout = Layout::kDimStrided,
       .kv_layout = Layout::kPadded},
  };
}

TEST_P(Compress, MovesEveryRowToItsPlace) {
  for (const Shape& shape : shapes()) {
    if (!serves(backend, shape)) continue;
    Problem problem(shape);
    for (const int32_t share : {TSP_SHARE_HEAD, TSP_SHARE_KV_GROUP, TSP_SHARE_LAYER}) {
      const Sets sets = problem.random_sets(share, 0.4f, 8, 3);
      const CompressResult c = problem.compress(backend, ctx, sets);
      for (size_t b = 0; b < sets.size(); ++b) {
        const auto num_sets = static_cast<int64_t>(sets[b].size());
        const int64_t kv_heads = c.k.view().heads;
        for (int32_t i = 0; i < c.rows; ++i) {
          const int64_t row = static_cast<int64_t>(b) * c.rows + i;
          const bool kept = static_cast<size_t>(i) < sets[b][0].size();
          for (int64_t head = 0; head < kv_heads; ++head) {
            const auto& set = sets[b][static_cast<size_t>(head / (kv_heads / num_sets))];
            const int64_t kv_head = head / (kv_heads / shape.num_kv_heads);
            for (int64_t d = 0; d < shape.dim; ++d) {
              if (!kept) {
                ASSERT_TRUE(std::isnan(c.k.at(row, head, d))) << "rows beyond kept are not written";
                continue;
              }
              const int64_t from = problem.k_offsets[b] + set[static_cast<size_t>(i)];
              ASSERT_EQ(c.k.at(row, head, d), problem.k.at(from, kv_head, d)) << shape.name();
              ASSERT_EQ(c.v.at(row, head, d), problem.v.at(from, kv_head, d)) << shape.name();
            }
          }
          for (int64_t head = 0; kept && head < shape.num_q_heads; ++head) {
            const auto& set = sets[b][static_cast<size_t>(head / (shape.num_q_heads / num_sets))];
            const int32_t q_row = set[static_cast<size_t>(i)] - (shape.k_lens[b] - shape.q_lens[b]);
            for (int64_t d = 0; d < shape.dim; ++d) {
              const float want =
                  q_row < 0 ? 0.0f : problem.q.at(problem.q_offsets[b] + q_row, head, d);
              ASSERT_EQ(c.q.at(row, head, d), want) << shape.name();
            }
          }
        }
      }
    }
  }
}

TSP_INSTANTIATE_ON_ALL_BACKENDS(Compress);

}  // namespace
}  // namespace tsp::test
