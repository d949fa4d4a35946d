// SPDX-License-Identifier: MIT
// attend and prefill on a device, with everything at once that calls may bring: lists of tokens and
// of blocks, pages, left-out rows.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <optional>

#include "tests/support/device_blocks.h"

namespace tsp::test {
namespace {

void require(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

Shape shape_of(std::vector<int32_t> q_lens, std::vector<int32_t> k_lens, int32_t dtype, int64_t dim,
               Layout kv_layout = Layout::kTokenMajor) {
  return {.q_lens = std::move(q_lens),
          .k_lens = std::move(k_lens),
          .num_q_heads = 4,
          .num_kv_heads = 2,
          .dim = dim,
          .q_dtype = dtype,
          .kv_dtype = dtype,
          .out_dtype = dtype,
          .kv_layout = kv_layout};
}

constexpr Options kLocal = {.dropped = TSP_DROPPED_LOCAL, .band = 37, .sink = 5};

/// Token sets, block lists and what becomes of left-out rows; null = not given.
struct Variant {
  const char* name;
  std::optional<int32_t> sets, blocks;  // who shares them
  Options options;
};
const std::vector<Variant>& variants() {
  static const std::vector<Variant> all = {
      {"dense", {}, {}, {}},
      {"blocks", {}, TSP_SHARE_HEAD, {}},
      {"one list of blocks", {}, TSP_SHARE_LAYER, {}},
      {"sets", TSP_SHARE_HEAD, {}, {}},
      {"local", TSP_SHARE_KV_GROUP, {}, kLocal},
      {"blocks among kept", TSP_SHARE_KV_GROUP, TSP_SHARE_HEAD, {}},
      {"blocks of each among its kept, local", TSP_SHARE_HEAD, TSP_SHARE_HEAD, kLocal},
      {"blocks among kept, local", TSP_SHARE_LAYER, TSP_SHARE_KV_GROUP, kLocal},
  };
  return all;
}

struct Lists {
  Lists(const Problem& problem, const Variant& variant) {
    if (variant.sets) sets = problem.random_sets(*variant.sets, 0.45f, 16, 5);
    if (variant.blocks) {
      blocks = problem.random_blocks(sets_or_null(), *variant.blocks, 128, 0.3f, 0, 6);
    }
  }
  const Sets* sets_or_null() const { return sets ? &*sets : nullptr; }
  const Blocks* blocks_or_null() const { return blocks ? &*blocks : nullptr; }
  std::optional<Sets> sets;
  std::optional<Blocks> blocks;
};

std::vector<Shape> all_kinds(const std::vector<int32_t>& q_lens,
                             const std::vector<int32_t>& k_lens) {
  std::vector<Shape> all;
  for (const int32_t dtype : {TSP_BF16, TSP_F16}) {
    for (const int64_t dim : {64, 128}) {
      for (const Layout layout : {Layout::kTokenMajor, Layout::kPaged}) {
        all.push_back(shape_of(q_lens, k_lens, dtype, dim, layout));
      }
    }
  }
  return all;
}

class CudaAttend : public ::testing::TestWithParam<Backend> {
 protected:
  const Backend& backend = GetParam();
  tokensparse::Context ctx = backend.open();
};

TEST_P(CudaAttend, EveryKindOfCallMatchesTheOracle) {
  for (const Shape& shape : all_kinds({257, 70}, {613, 70})) {
    Problem problem(shape);
    const Roundoff eps = roundoff(backend, shape, TSP_PRECISION_F32);
    for (const Variant& variant : variants()) {
      const Lists lists(problem, variant);
      const Sets* const sets = lists.sets_or_null();
      const Blocks* const blocks = lists.blocks_or_null();
      expect_attend(oracle_attend(problem, sets, variant.options, eps.operand, eps.weight, blocks),
                    problem.attend(backend, ctx, sets, variant.options, true, blocks),
                    shape.name() + ", " + variant.name);
    }
  }
}

/// Root mean square and largest distance from the exact result.
struct Error {
  Error(const std::vector<double>& exact, const std::function<double(size_t)>& value) {
    double square = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
      const double error = std::abs(value(i) - exact[i]);
      square += error * error;
      largest = std::max(largest, error);
    }
    root_mean_square = std::sqrt(square / static_cast<double>(exact.size()));
  }
  double root_mean_square, largest = 0;
};

TEST_P(CudaAttend, TheErrorIsAtMostTwiceThatOfAPlainImplementation) {
  for (const Shape& shape : all_kinds({600}, {1100})) {
    Problem problem(shape);
    for (const Variant& variant : variants()) {
      const Lists lists(problem, variant);
      const Sets* const sets = lists.sets_or_null();
      const Blocks* const blocks = lists.blocks_or_null();
      const auto exact = oracle_attend(problem, sets, variant.options, 0, 0, blocks).out;
      const auto plain = plain_attend(problem, sets, variant.options, blocks);
      const AttendResult got = problem.attend(backend, ctx, sets, variant.options, true, blocks);
      const Error want(exact, [&](size_t i) { return plain[i]; });
      const Error have(exact, [&](size_t i) {
        const auto at = static_cast<int64_t>(i);
        return static_cast<double>(
            got.out.at(at / shape.dim / 4, at / shape.dim % 4, at % shape.dim));
      });
      EXPECT_GT(want.root_mean_square, 1e-5);
      EXPECT_LE(have.root_mean_square, 2 * want.root_mean_square) << shape.name() << variant.name;
      EXPECT_LE(have.largest, 2 * want.largest) << shape.name() << ", " << variant.name;
    }
  }
}

TEST_P(CudaAttend, RepeatsOfEveryKindOfCallGiveTheSameBits) {
  for (const Shape& shape : all_kinds({700}, {1500})) {
    Problem problem(shape);
    for (const Variant& variant : variants()) {
      const Lists lists(problem, variant);
      const auto once = [&] {
        return problem.attend(backend, ctx, lists.sets_or_null(), variant.options, true,
                              lists.blocks_or_null());
      };
      const AttendResult first = once();
      for (int repeat = 0; repeat < 20; ++repeat) {
        const AttendResult again = once();
        ASSERT_EQ(again.out.bits(), first.out.bits()) << shape.name() << ", " << variant.name;
        ASSERT_EQ(again.lse.bits(), first.lse.bits()) << shape.name() << ", " << variant.name;
      }
    }
  }
}

TEST_P(CudaAttend, RepeatsOfPrefillOnPagesGiveTheSameBits) {
  Problem problem(shape_of({900, 1500}, {2000, 1500}, TSP_BF16, 128, Layout::kPaged));
  Options options = kLocal;
  options.min_tokens = 100;
  options.share = TSP_SHARE_KV_GROUP;
  options.coverage = 0.2f;
  const AttendResult first = problem.prefill(backend, ctx, options);
  EXPECT_LT(first.sets[0][0].size(), 2000u);
  for (int repeat = 0; repeat < 20; ++repeat) {
    const AttendResult again = problem.prefill(backend, ctx, options);
    ASSERT_EQ(again.sets, first.sets);
    ASSERT_EQ(again.out.bits(), first.out.bits());
  }
}

TEST_P(CudaAttend, ASequenceWithoutTokensIsRefusedByName) {
  const Shape shape = shape_of({0, 90}, {50, 200}, TSP_BF16, 64);
  Problem problem(shape);
  const auto refused = [&](const std::function<void()>& call) {
    try {
      call();
      ADD_FAILURE() << "served";
    } catch (const std::runtime_error& e) {
      EXPECT_STREQ(e.what(), "sequence 0: must have at least one query on cuda, got 0");
    }
  };
  refused([&] { problem.attend(backend, ctx, nullptr, {}); });
  refused([&] { problem.score(backend, ctx, {}); });
  refused([&] { problem.prefill(backend, ctx, {}); });
  Problem nothing(shape_of({0}, {0}, TSP_BF16, 64));
  refused([&] { nothing.attend(backend, ctx, nullptr, {}); });
}

/// A call on pages whose tables are the test's to change.
class PagedCall {
 public:
  PagedCall(const Backend& backend, tokensparse::Context& ctx, Problem& problem,
            const Options& options)
      : ctx_(ctx),
        out_host_(problem.shape.out_dtype, problem.shape.q_lens, 4, problem.shape.dim),
        lse_host_(TSP_F32, problem.shape.q_lens, 4, 1),
        q_(backend, problem.q),
        k_(backend, problem.k),
        v_(backend, problem.v),
        out_(backend, out_host_),
        lse_(backend, lse_host_) {
    const auto fill = [&](auto& p) {
      p.q = q_.view();
      p.k = k_.view();
      p.v = v_.view();
      p.out = out_.view();
      p.lse = lse_.view();
      p.batch = problem.batch();
    };
    fill(attend_);
    fill(prefill_);
    prefill_.min_tokens = options.min_tokens;
    prefill_.coverage = options.coverage;
    prefill_.share = options.share;
    prefill_.dropped = options.dropped;
    prefill_.band = options.band;
    prefill_.sink = options.sink;
    require_ok(tsp_attend_workspace(ctx.get(), &attend_, &attend_.workspace_bytes));
    require_ok(tsp_prefill_workspace(ctx.get(), &prefill_, &prefill_.workspace_bytes));
    memory_.emplace(backend, std::max(attend_.workspace_bytes, prefill_.workspace_bytes));
    attend_.workspace = prefill_.workspace = memory_->data();
  }
  void enqueue(bool whole) {
    require_ok(whole ? tsp_prefill(ctx_.get(), &prefill_) : tsp_attend(ctx_.get(), &attend_));
  }
  AttendResult result() {
    require(cudaDeviceSynchronize());
    out_.sync();
    lse_.sync();
    return {out_host_, lse_host_, {}, {}};
  }
  /// Content and tables of another problem of the same shape.
  void load(const Problem& problem) {
    const auto copy = [](const Tensor& from, const tsp_tensor_t& to) {
      require(
          cudaMemcpy(to.data, from.bytes().data(), from.bytes().size(), cudaMemcpyHostToDevice));
      if (from.table().empty()) return;
      require(cudaMemcpy(const_cast<int32_t*>(to.block_table), from.table().data(),
                         from.table().size() * sizeof(int32_t), cudaMemcpyHostToDevice));
    };
    copy(problem.q, q_.view());
    copy(problem.k, k_.view());
    copy(problem.v, v_.view());
  }

 private:
  static void require_ok(tsp_status_t status) {
    if (status != TSP_OK) throw std::runtime_error(tsp_last_error());
  }
  tokensparse::Context& ctx_;
  Tensor out_host_, lse_host_;
  OnDevice q_, k_, v_, out_, lse_;
  tokensparse::AttendParams attend_;
  tokensparse::PrefillParams prefill_;
  std::optional<Bytes> memory_;
};

Options sparse_options() {
  Options options = kLocal;
  options.min_tokens = 100;
  options.share = TSP_SHARE_KV_GROUP;
  options.coverage = 0.2f;
  return options;
}

TEST_P(CudaAttend, AGraphOnPagesReplaysWithOtherTables) {
  cudaStream_t stream = nullptr;
  require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  Shape shape = shape_of({700, 1500}, {2000, 1500}, TSP_BF16, 128, Layout::kPaged);
  const Options options = sparse_options();
  Problem first(shape);
  PagedCall call(backend, ctx, first, options);
  ASSERT_EQ(tsp_context_set_stream(ctx.get(), stream), TSP_OK);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  call.enqueue(true);
  require(cudaStreamEndCapture(stream, &graph));
  require(cudaGraphInstantiate(&exec, graph, 0));
  for (const uint32_t seed : {7u, 8u, 9u}) {
    shape.seed = seed;
    Problem problem(shape);
    call.load(problem);
    require(cudaGraphLaunch(exec, stream));
    const AttendResult alone = problem.prefill(backend, ctx, options);
    EXPECT_EQ(call.result().out.bits(), alone.out.bits()) << seed;
  }
  require(cudaGraphExecDestroy(exec));
  require(cudaGraphDestroy(graph));
  ASSERT_EQ(tsp_context_set_stream(ctx.get(), nullptr), TSP_OK);
  require(cudaStreamDestroy(stream));
}

INSTANTIATE_TEST_SUITE_P(, CudaAttend, ::testing::ValuesIn(cuda_backends()),
                         [](const auto& instance) { return instance.param.name; });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CudaAttend);

}  // namespace
}  // namespace tsp::test
