// SPDX-License-Identifier: MIT
// tsp_decompress(): rows back at their positions, zeros elsewhere, bits unchanged.
#include <algorithm>

#include "tests/support/op_test.h"

namespace tsp::test {
namespace {

class Decompress : public OpTest {};

TEST_P(Decompress, PutsRowsBackAndZerosElsewhere) {
  const int32_t f16 = TSP_F16, bf16 = TSP_BF16;
  const std::vector<Shape> shapes = {
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
      {.q_lens = {0, 70, 0, 0, 33, 0}, .k_lens = {0, 90, 41, 0, 33, 12}},
      {.q_lens = {77}, .k_lens = {99}, .q_layout = Layout::kDimStrided},
      {.q_lens = {300},
       .k_lens = {333},
       .num_q_heads = 12,
       .num_kv_heads = 2,
       .dim = 128,
       .q_dtype = bf16,
       .kv_dtype = bf16,
       .out_dtype = bf16},
      {.q_lens = {190, 70},
       .k_lens = {190, 400},
       .num_q_heads = 16,
       .num_kv_heads = 4,
       .dim = 64,
       .q_dtype = bf16,
       .kv_dtype = bf16,
       .out_dtype = bf16},
  };
  for (const Shape& shape : shapes) {
    if (!serves(backend, shape)) continue;
    Problem problem(shape);
    for (const int32_t share : {TSP_SHARE_HEAD, TSP_SHARE_KV_GROUP, TSP_SHARE_LAYER}) {
      const Sets sets = problem.random_sets(share, 0.4f, 8, 3);
      size_t longest = 0;
      for (const auto& sequence : sets) longest = std::max(longest, sequence[0].size());
      const auto rows = static_cast<int32_t>(longest + 2);
      Tensor in(shape.q_dtype, std::vector<int32_t>(sets.size(), rows), shape.num_q_heads,
                shape.dim, Layout::kHeadMajor);
      in.randomise(11);
      const Tensor out = problem.decompress(backend, ctx, sets, in);
      for (size_t b = 0; b < sets.size(); ++b) {
        for (int64_t head = 0; head < shape.num_q_heads; ++head) {
          const auto num_sets = static_cast<int64_t>(sets[b].size());
          const auto& set = sets[b][static_cast<size_t>(head / (shape.num_q_heads / num_sets))];
          for (int32_t r = 0; r < shape.q_lens[b]; ++r) {
            const int32_t position = shape.k_lens[b] - shape.q_lens[b] + r;
            const auto at = std::lower_bound(set.begin(), set.end(), position);
            const bool kept = at != set.end() && *at == position;
            const int64_t from = static_cast<int64_t>(b) * rows + (at - set.begin());
            const int64_t row = problem.q_offsets[b] + r;
            for (int64_t d = 0; d < shape.dim; ++d) {
              ASSERT_EQ(out.at(row, head, d), kept ? in.at(from, head, d) : 0.0f);
            }
          }
        }
      }
    }
  }
}

TSP_INSTANTIATE_ON_ALL_BACKENDS(Decompress);

}  // namespace
}  // namespace tsp::test
