// SPDX-License-Identifier: MIT
// attend and prefill on a device, with everything at once that calls may bring: lists of tokens and
// of blocks, pages, left-out rows; and lists and tables that break their rules.
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

Options sparse_options() {
  Options options = kLocal;
  options.min_tokens = 100;
  options.share = TSP_SHARE_KV_GROUP;
  options.coverage = 0.2f;
  return options;
}

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
  Lists(const Problem& problem, const Variant& variant, float keep = 0.45f) {
    if (variant.sets) sets = problem.random_sets(*variant.sets, keep, 16, 5);
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
  // Of the last sequence's three query blocks one has kept rows, and lists; nothing lies behind.
  for (const Shape& shape : all_kinds({70, 257}, {70, 520})) {
    Problem problem(shape);
    const Roundoff eps = roundoff(backend, shape, TSP_PRECISION_F32);
    for (const Variant& variant : variants()) {
      const Lists lists(problem, variant, 0.35f);
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

/// As a whole beside f32 loops, whose largest weight of a row is exactly 1. The kernels' is not, as
/// they do not look for the row's maximum in every step; so a single value, mostly of a row that
/// has one large weight, may be further off than twice the loops' worst (2.3 times in 1 of 32
/// cases), and is compared with operators in the tensors' dtype.
TEST_P(CudaAttend, TheErrorIsAtMostTwiceThatOfAPlainImplementation) {
  for (const Shape& shape : all_kinds({600}, {1100})) {
    Problem problem(shape);
    for (const Variant& variant : variants()) {
      const Lists lists(problem, variant);
      const Sets* const sets = lists.sets_or_null();
      const Blocks* const blocks = lists.blocks_or_null();
      const auto exact = oracle_attend(problem, sets, variant.options, 0, 0, blocks).out;
      const auto loops = plain_attend(problem, sets, variant.options, blocks, Plain::kLoops);
      const auto operators =
          plain_attend(problem, sets, variant.options, blocks, Plain::kOperators);
      const AttendResult got = problem.attend(backend, ctx, sets, variant.options, true, blocks);
      const Error by_loops(exact, [&](size_t i) { return loops[i]; });
      const Error by_operators(exact, [&](size_t i) { return operators[i]; });
      const Error have(exact, [&](size_t i) {
        const auto at = static_cast<int64_t>(i);
        return static_cast<double>(
            got.out.at(at / shape.dim / 4, at / shape.dim % 4, at % shape.dim));
      });
      EXPECT_GT(by_loops.root_mean_square, 1e-5);
      EXPECT_LE(have.root_mean_square, 2 * by_loops.root_mean_square)
          << shape.name() << ", " << variant.name;
      EXPECT_LE(have.largest, 2 * by_operators.largest) << shape.name() << ", " << variant.name;
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
  const Options options = sparse_options();
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

/// Such a stride leads nowhere.
TEST_P(CudaAttend, ASingleHeadOrTokenMayHaveAnyStride) {
  for (const int32_t tokens : {1, 300}) {
    Shape shape = shape_of({tokens}, {tokens}, TSP_BF16, 128);
    shape.num_kv_heads = 1;
    Problem problem(shape);
    const auto bits_with = [&](int64_t stride) {
      Tensor out_host(TSP_BF16, {tokens}, 4, 128);
      OnDevice q(backend, problem.q), k(backend, problem.k), v(backend, problem.v);
      OnDevice out(backend, out_host);
      tokensparse::AttendParams p;
      p.q = q.view();
      p.k = k.view();
      p.v = v.view();
      p.out = out.view();
      for (tsp_tensor_t* view : {&p.k, &p.v}) {
        view->head_stride = stride;
        if (tokens == 1) view->token_stride = stride;
      }
      if (tsp_attend_workspace(ctx.get(), &p, &p.workspace_bytes) != TSP_OK) ADD_FAILURE();
      const Bytes workspace(backend, p.workspace_bytes);
      p.workspace = workspace.data();
      EXPECT_EQ(tsp_attend(ctx.get(), &p), TSP_OK) << tsp_last_error();
      out.sync();
      return out_host.bits();
    };
    const auto bits = bits_with(128);
    EXPECT_EQ(bits_with(0), bits);
    EXPECT_EQ(bits_with(int64_t{1} << 43), bits);
  }
}

/// Every value of the rows [begin, end) is a NaN; or none is.
void expect_nan(const AttendResult& result, int64_t begin, int64_t end, bool nan,
                const std::string& what) {
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t head = 0; head < 4; ++head) {
      ASSERT_EQ(std::isnan(result.lse.at(row, head)), nan) << what << ", row " << row;
      for (int64_t d = 0; d < result.out.view().dim; ++d) {
        ASSERT_EQ(std::isnan(result.out.at(row, head, d)), nan) << what << ", row " << row;
      }
    }
  }
}

/// The host cannot look at lists on the device, and no kernel follows a bad one.
TEST_P(CudaAttend, BlockListsThatBreakARuleGiveNanInTheirSequenceAndNoOther) {
  using Row = std::vector<int32_t>;
  const struct {
    const char* name;
    std::function<void(Row&)> spoil;  // the list of rows [256, 384) of 700 keys: within 0 .. 5
  } cases[] = {
      {"empty", [](Row& row) { row.clear(); }},
      {"unsorted",
       [](Row& row) {
         row = {1, 0, 4, 5};
       }},
      {"twice the same",
       [](Row& row) {
         row = {1, 1, 4, 5};
       }},
      {"negative",
       [](Row& row) {
         row = {-1, 4, 5};
       }},
      {"far out of range",
       [](Row& row) {
         row = {0, 4, 5, 1 << 29};
       }},
      {"behind the last entry",
       [](Row& row) {
         row = {0, 5};
         row.push_back(6);
       }},
      {"without its own",
       [](Row& row) {
         row = {0, 1, 2};
       }},
      {"without one of its own",
       [](Row& row) {
         row = {0, 1, 5};
       }},
      {"more than there are", [](Row& row) { row = {0, 1, 2, 3, 4, 5, 6, 7}; }},
  };
  for (const int64_t dim : {64, 128}) {
    for (const bool among_kept : {false, true}) {
      Problem problem(shape_of({380, 200}, {700, 200}, TSP_BF16, dim));
      std::optional<Sets> all;  // keeps everything, so that entries are positions
      if (among_kept) all = problem.random_sets(TSP_SHARE_HEAD, 1.0f, 128, 5);
      const Sets* const sets = all ? &*all : nullptr;
      const Blocks good = problem.random_blocks(sets, TSP_SHARE_HEAD, 128, 0.3f, 0, 6);
      const AttendResult before = problem.attend(backend, ctx, sets, kLocal, true, &good);
      expect_nan(before, 0, 580, false, "good");
      for (const auto& [name, spoil] : cases) {
        for (const bool whole : {false, true}) {  // prefill looks too
          Blocks bad = good;
          spoil(bad.rows[0][2][2]);
          Options options = kLocal;
          options.coverage = 0;
          const AttendResult got = whole ? problem.prefill(backend, ctx, options, sets, &bad)
                                         : problem.attend(backend, ctx, sets, options, true, &bad);
          expect_nan(got, 0, 380, true, name);
          for (int64_t row = 380; row < 580; ++row) {
            ASSERT_EQ(got.out.at(row, 3, 7), before.out.at(row, 3, 7)) << name;
          }
        }
      }
      const AttendResult after = problem.attend(backend, ctx, sets, kLocal, true, &good);
      EXPECT_EQ(after.out.bits(), before.out.bits()) << "the context stays usable";
    }
  }
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
    set_options(prefill_, options);
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
  AttendResult run(bool whole) {
    enqueue(whole);
    return result();
  }
  static void write(const tsp_tensor_t& view, int64_t entry, int32_t page) {
    require(cudaMemcpy(const_cast<int32_t*>(view.block_table) + entry, &page, sizeof page,
                       cudaMemcpyHostToDevice));
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
  tsp_tensor_t k() const { return k_.view(); }
  tsp_tensor_t v() const { return v_.view(); }

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

TEST_P(CudaAttend, APageTableWithAHoleGivesNanInItsSequenceAndNoOther) {
  for (const int64_t dim : {64, 128}) {
    Problem problem(shape_of({300, 900}, {900, 1200}, TSP_BF16, dim, Layout::kPaged));
    PagedCall call(backend, ctx, problem, sparse_options());
    for (const bool whole : {false, true}) {
      const AttendResult good = call.run(whole);
      expect_nan(good, 0, 1200, false, "good");
      for (const bool of_k : {false, true}) {
        const tsp_tensor_t view = of_k ? call.k() : call.v();
        const auto& table = (of_k ? problem.k : problem.v).table();
        for (const int64_t page : {0, 30, 56}) {  // 57 pages of 16 hold 900 tokens
          for (const int32_t hole : {-1, -(1 << 30)}) {
            PagedCall::write(view, page, hole);
            const AttendResult got = call.run(whole);
            expect_nan(got, 0, 300, true, "hole");
            for (int64_t row = 300; row < 1200; ++row) {
              ASSERT_EQ(got.out.at(row, 3, 7), good.out.at(row, 3, 7)) << row;
            }
          }
          PagedCall::write(view, page, table[static_cast<size_t>(page)]);
        }
      }
      EXPECT_EQ(call.run(whole).out.bits(), good.out.bits()) << "the context stays usable";
    }
  }
}

/// Rows, and pages, of which the last begin beyond 2^31 elements: 4.7 GB, hardly any of it used.
TEST_P(CudaAttend, OffsetsBeyondTwoToThe31AreFollowed) {
  constexpr int32_t kTokens = 70;
  constexpr int64_t kApart = int64_t{1} << 25;  // elements between rows
  constexpr int64_t kQAt = 0, kKAt = 1024, kVAt = 2048, kOutAt = 3072;
  constexpr size_t kRow = 512 * sizeof(uint16_t), kKvRow = 256 * sizeof(uint16_t);
  Problem problem(shape_of({kTokens}, {kTokens}, TSP_BF16, 128));
  Options options = kLocal;
  options.window = 16;
  options.min_tokens = 8;
  options.share = TSP_SHARE_KV_GROUP;
  options.keep = 0.4f;
  const auto expected = problem.prefill(backend, ctx, options).out.bits();
  void* memory = nullptr;
  require(cudaMalloc(&memory, static_cast<size_t>(kTokens * kApart) * sizeof(uint16_t)));
  const auto at = [&](int64_t element) { return static_cast<uint16_t*>(memory) + element; };
  const auto spread = [&](const Tensor& from, int64_t to, int64_t apart, size_t row) {
    require(cudaMemcpy2D(at(to), static_cast<size_t>(apart) * sizeof(uint16_t), from.bytes().data(),
                         row, row, kTokens, cudaMemcpyHostToDevice));
  };
  const auto view = [&](int64_t first, int64_t heads, int64_t apart) {
    tsp_tensor_t v = tsp_tensor_view(at(first), TSP_BF16, kTokens, heads, 128);
    v.token_stride = apart;
    return v;
  };
  tokensparse::PrefillParams p;
  set_options(p, options);
  const int32_t ends[] = {0, kTokens};
  p.batch = {ends, ends, 1, 0};
  p.q = view(kQAt, 4, kApart);
  p.out = view(kOutAt, 4, kApart);
  spread(problem.q, kQAt, kApart, kRow);
  constexpr int32_t kPages = (kTokens + 15) / 16;
  constexpr int64_t kPage = 16 * 256;
  const Bytes table(backend, kPages * sizeof(int32_t));
  for (const bool paged : {false, true}) {
    if (paged) {
      // Pages of the pool's end, in the order 4 0 3 2 1; V's pages lie behind K's.
      constexpr int32_t kFirst = static_cast<int32_t>((int64_t{1} << 31) / kPage) + 9;
      const std::vector<int32_t> pages = {kFirst + 4, kFirst, kFirst + 3, kFirst + 2, kFirst + 1};
      for (int32_t i = 0; i < kPages; ++i) {
        const size_t rows = static_cast<size_t>(std::min(16, kTokens - i * 16));
        for (const auto& [from, offset] :
             {std::pair(&problem.k, int64_t{0}), std::pair(&problem.v, kPages * kPage)}) {
          require(cudaMemcpy(at(pages[static_cast<size_t>(i)] * kPage + offset),
                             from->bytes().data() + static_cast<size_t>(i) * 16 * kKvRow,
                             rows * kKvRow, cudaMemcpyHostToDevice));
        }
      }
      require(cudaMemcpy(table.data(), pages.data(), table.size(), cudaMemcpyHostToDevice));
      p.k = view(0, 2, 256);
      p.v = view(kPages * kPage, 2, 256);
      for (tsp_tensor_t* pool : {&p.k, &p.v}) {
        pool->block_table = table.as<int32_t>();
        pool->block_size = 16;
        pool->block_stride = kPage;
        pool->table_stride = kPages;
      }
    } else {
      p.k = view(kKAt, 2, kApart);
      p.v = view(kVAt, 2, kApart);
      spread(problem.k, kKAt, kApart, kKvRow);
      spread(problem.v, kVAt, kApart, kKvRow);
    }
    ASSERT_EQ(tsp_prefill_workspace(ctx.get(), &p, &p.workspace_bytes), TSP_OK);
    const Bytes workspace(backend, p.workspace_bytes);
    p.workspace = workspace.data();
    ASSERT_EQ(tsp_prefill(ctx.get(), &p), TSP_OK) << tsp_last_error();
    require(cudaDeviceSynchronize());
    Tensor out(TSP_BF16, {kTokens}, 4, 128);
    require(cudaMemcpy2D(out.bytes().data(), kRow, at(kOutAt), kApart * sizeof(uint16_t), kRow,
                         kTokens, cudaMemcpyDeviceToHost));
    EXPECT_EQ(out.bits(), expected) << (paged ? "paged" : "in rows");
  }
  require(cudaFree(memory));
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
    for (const int64_t hole : {-1, 40}) {  // once without one
      if (hole >= 0) PagedCall::write(call.k(), hole, -1);
      require(cudaGraphLaunch(exec, stream));
      const AttendResult replayed = call.result();
      if (hole >= 0) {
        expect_nan(replayed, 0, 700, true, "hole");
        continue;
      }
      const AttendResult alone = problem.prefill(backend, ctx, options);
      EXPECT_EQ(replayed.out.bits(), alone.out.bits()) << seed;
    }
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
