// SPDX-License-Identifier: MIT
// The CPU backend's packing buffer: bounded, and without a trace in the results. A problem whose
// packed keys need several waves must give the bits of its parts, each run alone in one wave.
#include <cmath>
#include <limits>

#include "tests/support/op_test.h"

namespace tsp::test {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

std::vector<Backend> cpu_backends() {
  std::vector<Backend> cpu;
  for (Backend& backend : all_backends()) {
    if (backend.backend == TSP_BACKEND_CPU) cpu.push_back(backend);
  }
  return cpu;
}

class CpuWaves : public OpTest {
 protected:
  bool serves_bf16() const { return backend.has_bf16(); }
};

/// Heads first .. first + count - 1 of a view.
tsp_tensor_t some_heads(tsp_tensor_t view, int64_t first, int64_t count) {
  const int64_t bytes = first * view.head_stride * dtype_bytes(view.dtype);
  view.data = static_cast<unsigned char*>(view.data) + bytes;
  view.heads = count;
  return view;
}

/// attend() on query heads that read KV heads first .. first + count - 1. Returns the bytes of
/// workspace it took.
size_t attend_heads(const Backend& backend, tokensparse::Context& ctx, Problem& problem,
                    Tensor& out, int32_t precision, int64_t first, int64_t count) {
  const int64_t group = problem.shape.num_q_heads / problem.shape.num_kv_heads;
  tokensparse::AttendParams p;
  p.precision = precision;
  p.q = some_heads(problem.q.view(), first * group, count * group);
  p.k = some_heads(problem.k.view(), first, count);
  p.v = some_heads(problem.v.view(), first, count);
  p.out = some_heads(out.view(), first * group, count * group);
  p.batch = problem.batch();
  EXPECT_EQ(tsp_attend_workspace(ctx.get(), &p, &p.workspace_bytes), TSP_OK);
  const Bytes workspace(backend, p.workspace_bytes);
  p.workspace = workspace.data();
  EXPECT_EQ(tsp_attend(ctx.get(), &p), TSP_OK) << tsp_last_error();
  return p.workspace_bytes;
}

/// Two buffers of 16 MiB take turns: 24 KV heads of over 2 MiB each.
TEST_P(CpuWaves, WavesInTurnGiveTheBitsOfEachHeadAlone) {
  for (const int32_t precision : {TSP_PRECISION_F32, TSP_PRECISION_BF16}) {
    if (precision == TSP_PRECISION_BF16 && !serves_bf16()) continue;
    const int32_t k_len = precision == TSP_PRECISION_F32 ? 520 : 1030;
    Problem problem({.q_lens = {70},
                     .k_lens = {k_len},
                     .num_q_heads = 24,
                     .num_kv_heads = 24,
                     .dim = 512,
                     .kv_dtype = TSP_F16});
    Tensor together(TSP_F32, problem.shape.q_lens, 24, 512);
    Tensor alone(TSP_F32, problem.shape.q_lens, 24, 512);
    const size_t bytes = attend_heads(backend, ctx, problem, together, precision, 0, 24);
    EXPECT_GT(bytes, 32 * kMiB) << "one wave would do: the test shows nothing";
    EXPECT_LT(bytes, 36 * kMiB);
    for (int64_t head = 0; head < 24; ++head) {
      attend_heads(backend, ctx, problem, alone, precision, head, 1);
    }
    EXPECT_EQ(together.bits(), alone.bits());
  }
}

/// A KV head larger than half the buffer: one buffer of its size, filled and used in turn.
TEST_P(CpuWaves, AHeadLargerThanTheBufferIsTheBound) {
  const int32_t k_len = 9000;  // 35 MiB in f32 at D 512
  Problem problem({.q_lens = {7},
                   .k_lens = {k_len},
                   .num_q_heads = 4,
                   .num_kv_heads = 2,
                   .dim = 512,
                   .kv_dtype = TSP_F16});
  Tensor together(TSP_F32, problem.shape.q_lens, 4, 512);
  Tensor alone(TSP_F32, problem.shape.q_lens, 4, 512);
  const size_t bytes = attend_heads(backend, ctx, problem, together, TSP_PRECISION_F32, 0, 2);
  const size_t head_bytes = size_t{9024} * 512 * 2 * sizeof(float);  // panels are whole
  EXPECT_LT(bytes, head_bytes + 2 * kMiB);
  for (int64_t head = 0; head < 2; ++head) {
    attend_heads(backend, ctx, problem, alone, TSP_PRECISION_F32, head, 1);
  }
  EXPECT_EQ(together.bits(), alone.bits());
}

/// What a row sees first may be nothing but minus infinity, for more keys than a block holds.
TEST_P(CpuWaves, RowsOfMinusInfinityCountFromTheirFirstFiniteKey) {
  Problem problem({.q_lens = {1300}, .k_lens = {1300}, .num_q_heads = 2, .num_kv_heads = 1});
  for (int64_t token = 0; token < 1300; ++token) {
    for (int64_t d = 0; d < 64; ++d) {
      problem.k.set(token, 0, d, d == 0 && token < 1100 ? -3e38f : 0.0f);
      for (int64_t head = 0; head < 2; ++head) problem.q.set(token, head, d, d == 0 ? 30.f : 0.f);
    }
  }
  Tensor out(TSP_F32, {1300}, 2, 64);
  attend_heads(backend, ctx, problem, out, TSP_PRECISION_F32, 0, 1);
  for (int64_t d = 0; d < 64; ++d) {
    EXPECT_TRUE(
        std::isnan(out.at(1099, 0, d)));  // no key has any weight: 0 / 0, as in the reference
    double mean = 0;
    for (int64_t token = 1100; token < 1300; ++token) mean += problem.v.at(token, 0, d) / 200.0;
    EXPECT_NEAR(out.at(1299, 0, d), mean, 1e-5);
    EXPECT_NEAR(out.at(1100, 1, d), problem.v.at(1100, 0, d), 1e-6);
  }
}

INSTANTIATE_TEST_SUITE_P(, CpuWaves, ::testing::ValuesIn(cpu_backends()), backend_name);

}  // namespace
}  // namespace tsp::test
