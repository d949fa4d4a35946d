// SPDX-License-Identifier: MIT
// tsp_compress() and tsp_decompress(): rows and zeros in the right places, bits unchanged; and the
// pair around a dense attend() is the sparse attend().
#include <cmath>

#include "tests/support/op_test.h"

namespace tsp::test {
namespace {

class Compress : public OpTest {
 protected:
  struct Compact {
    Tensor q, k, v;
    int32_t rows;
  };
  static tsp_index_sets_t on_device(const Shape& shape, const Sets& sets, Bytes& indices,
                                    Bytes& kept) {
    const auto num_sets = static_cast<int32_t>(sets[0].size());
    const int64_t stride = *std::max_element(shape.k_lens.begin(), shape.k_lens.end());
    std::vector<int32_t> flat(indices.size() / sizeof(int32_t), -1), counts;
    for (size_t b = 0; b < sets.size(); ++b) {
      counts.push_back(static_cast<int32_t>(sets[b][0].size()));
      for (size_t s = 0; s < sets[b].size(); ++s) {
        std::copy(sets[b][s].begin(), sets[b][s].end(),
                  flat.begin() + static_cast<int64_t>(b * sets[b].size() + s) * stride);
      }
    }
    indices.write(flat);
    kept.write(counts);
    return {indices.as<int32_t>(), kept.as<int32_t>(), num_sets, 0, stride, num_sets * stride};
  }
  static size_t indices_bytes(const Shape& shape, const Sets& sets) {
    return sets.size() * sets[0].size() * sizeof(int32_t) *
           static_cast<size_t>(*std::max_element(shape.k_lens.begin(), shape.k_lens.end()));
  }

  Compact compress(Problem& problem, const Sets& sets) {
    const Shape& shape = problem.shape;
    size_t rows = 0;
    for (const auto& sequence : sets) rows = std::max(rows, sequence[0].size() + 2);
    const auto kv_heads =
        std::max<int64_t>(static_cast<int64_t>(sets[0].size()), shape.num_kv_heads);
    const std::vector<int32_t> lens(sets.size(), static_cast<int32_t>(rows));
    Compact c{Tensor(shape.q_dtype, lens, shape.num_q_heads, shape.dim, Layout::kHeadMajor),
              Tensor(shape.kv_dtype, lens, kv_heads, shape.dim),
              Tensor(shape.kv_dtype, lens, kv_heads, shape.dim), static_cast<int32_t>(rows)};
    Bytes indices(backend, indices_bytes(shape, sets)),
        kept(backend, sets.size() * sizeof(int32_t));
    OnDevice q(backend, problem.q), k(backend, problem.k), v(backend, problem.v);
    OnDevice qc(backend, c.q), kc(backend, c.k), vc(backend, c.v);
    tokensparse::CompressParams p;
    p.q = q.view();
    p.k = k.view();
    p.v = v.view();
    p.q_out = qc.view();
    p.k_out = kc.view();
    p.v_out = vc.view();
    p.selected = on_device(shape, sets, indices, kept);
    p.batch = problem.batch();
    const auto status = tokensparse::compress(ctx, p);
    EXPECT_TRUE(status.ok()) << status.message();
    qc.sync();
    kc.sync();
    vc.sync();
    return c;
  }

  Tensor decompress(Problem& problem, const Sets& sets, Tensor& in) {
    const Shape& shape = problem.shape;
    Tensor out(shape.q_dtype, shape.q_lens, shape.num_q_heads, shape.dim, shape.q_layout);
    Bytes indices(backend, indices_bytes(shape, sets)),
        kept(backend, sets.size() * sizeof(int32_t));
    OnDevice din(backend, in), dout(backend, out);
    tokensparse::DecompressParams p;
    p.in = din.view();
    p.out = dout.view();
    p.k_len = shape.k_lens[0];
    p.selected = on_device(shape, sets, indices, kept);
    p.batch = problem.batch();
    const auto status = tokensparse::decompress(ctx, p);
    EXPECT_TRUE(status.ok()) << status.message();
    dout.sync();
    EXPECT_TRUE(out.poison_intact());
    return out;
  }
};

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
      Compact c = compress(problem, sets);
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

TEST_P(Compress, DecompressPutsRowsBackAndZerosElsewhere) {
  for (const Shape& shape : shapes()) {
    if (!serves(backend, shape)) continue;
    Problem problem(shape);
    for (const int32_t share : {TSP_SHARE_HEAD, TSP_SHARE_KV_GROUP, TSP_SHARE_LAYER}) {
      const Sets sets = problem.random_sets(share, 0.4f, 8, 3);
      Compact c = compress(problem, sets);
      const Tensor out = decompress(problem, sets, c.q);
      for (size_t b = 0; b < sets.size(); ++b) {
        for (int64_t head = 0; head < shape.num_q_heads; ++head) {
          const auto num_sets = static_cast<int64_t>(sets[b].size());
          const auto& set = sets[b][static_cast<size_t>(head / (shape.num_q_heads / num_sets))];
          for (int32_t r = 0; r < shape.q_lens[b]; ++r) {
            const bool kept =
                std::binary_search(set.begin(), set.end(), shape.k_lens[b] - shape.q_lens[b] + r);
            const int64_t row = problem.q_offsets[b] + r;
            for (int64_t d = 0; d < shape.dim; ++d) {
              ASSERT_EQ(out.at(row, head, d), kept ? problem.q.at(row, head, d) : 0.0f);
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
