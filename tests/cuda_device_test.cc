// SPDX-License-Identifier: MIT
// What only a device can show: graphs, streams, no synchronisation, sequences long enough for
// cuDNN and for several groups of heads, refusals that name the argument, very long sequences.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <thread>

#include "tests/support/problem.h"
#include "tokensparse/estimate.h"

namespace tsp::test {
namespace {

void require(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

Shape bf16_shape(int32_t q_len, int32_t k_len, int64_t q_heads, int64_t kv_heads, int64_t dim,
                 int32_t dtype = TSP_BF16) {
  return {.q_lens = {q_len},
          .k_lens = {k_len},
          .num_q_heads = q_heads,
          .num_kv_heads = kv_heads,
          .dim = dim,
          .q_dtype = dtype,
          .kv_dtype = dtype,
          .out_dtype = dtype};
}

class CudaDevice : public ::testing::TestWithParam<Backend> {
 protected:
  const Backend& backend = GetParam();
  tokensparse::Context ctx = backend.open();
};

/// prefill of one problem with everything on the device, ready to be enqueued again and again.
class DevicePrefill {
 public:
  DevicePrefill(const Backend& backend, tokensparse::Context& ctx, Problem& problem,
                const Options& options, const tsp_pattern_t* pattern = nullptr)
      : ctx_(ctx),
        out(problem.shape.out_dtype, problem.shape.q_lens, problem.shape.num_q_heads,
            problem.shape.dim),
        q_(backend, problem.q),
        k_(backend, problem.k),
        v_(backend, problem.v),
        out_(backend, out),
        kept_(backend, sizeof(int32_t)) {
    p_.window = options.window;
    p_.min_tokens = options.min_tokens;
    p_.coverage = options.coverage;
    p_.keep = options.keep;
    p_.share = options.share;
    p_.dropped = options.dropped;
    p_.band = options.band;
    p_.sink = options.sink;
    if (pattern != nullptr) p_.pattern = *pattern;
    p_.q = q_.view();
    p_.k = k_.view();
    p_.v = v_.view();
    p_.out = out_.view();
    p_.selected.kept = kept_.as<int32_t>();
    if (tsp_prefill_workspace(ctx.get(), &p_, &p_.workspace_bytes) != TSP_OK) {
      throw std::runtime_error(tsp_last_error());
    }
    workspace_ = std::make_unique<Bytes>(backend, p_.workspace_bytes);
    p_.workspace = workspace_->data();
  }
  void enqueue() {
    if (tsp_prefill(ctx_.get(), &p_) != TSP_OK) throw std::runtime_error(tsp_last_error());
  }
  std::vector<uint32_t> bits() {
    out_.sync();
    return out.bits();
  }
  int32_t kept() const { return kept_.read<int32_t>()[0]; }
  const tsp_tensor_t q_view() const { return q_.view(); }
  const tsp_tensor_t k_view() const { return k_.view(); }

 private:
  tokensparse::Context& ctx_;

 public:
  Tensor out;

 private:
  OnDevice q_, k_, v_, out_;
  Bytes kept_;
  std::unique_ptr<Bytes> workspace_;
  tokensparse::PrefillParams p_;
};

TEST_P(CudaDevice, LongEnoughForEveryEngineMatchesTheOracle) {
  const std::vector<Shape> shapes = {
      bf16_shape(1500, 1500, 4, 2, 64),         bf16_shape(1100, 1100, 4, 1, 128, TSP_F16),
      bf16_shape(300, 1700, 4, 2, 128),         bf16_shape(1280, 1280, 2, 1, 128),
      bf16_shape(257, 1281, 6, 2, 64, TSP_F16),
  };
  for (const Shape& shape : shapes) {
    Problem problem(shape);
    const Roundoff eps = roundoff(backend, shape, TSP_PRECISION_F32);
    for (const int32_t share :
         {-1, static_cast<int32_t>(TSP_SHARE_HEAD), static_cast<int32_t>(TSP_SHARE_KV_GROUP)}) {
      const Sets sets = share < 0 ? Sets{} : problem.random_sets(share, 0.45f, 128, 5);
      const Sets* selected = share < 0 ? nullptr : &sets;
      const Options options = {
          .dropped = share == TSP_SHARE_HEAD ? TSP_DROPPED_LOCAL : TSP_DROPPED_ZERO, .band = 100};
      expect_attend(oracle_attend(problem, selected, options, eps.operand, eps.weight),
                    problem.attend(backend, ctx, selected, options),
                    shape.name() + ", share " + std::to_string(share));
    }
  }
}

/// Sets as sparse as they are in use: most rows are left out, their tiles span more positions than
/// rows, first keys and band lie apart, touch and overlap.
TEST_P(CudaDevice, LeftOutRowsMatchTheOracle) {
  const struct {
    Shape shape;
    int32_t sink, band;
  } cases[] = {{bf16_shape(1500, 1500, 8, 2, 128), 64, 256},
               {bf16_shape(1500, 1500, 14, 2, 64), 64, 256},
               {bf16_shape(700, 1300, 4, 1, 128, TSP_F16), 100, 70},
               {bf16_shape(1100, 1100, 4, 4, 64, TSP_F16), 3, 1000},
               {bf16_shape(600, 600, 9, 1, 128), 300, 2}};
  for (const auto& [shape, sink, band] : cases) {
    Problem problem(shape);
    const Roundoff eps = roundoff(backend, shape, TSP_PRECISION_F32);
    for (const int32_t share : {TSP_SHARE_HEAD, TSP_SHARE_KV_GROUP, TSP_SHARE_LAYER}) {
      const Sets sets = problem.random_sets(share, 0.2f, 128, 5);
      const Options options = {.dropped = TSP_DROPPED_LOCAL, .band = band, .sink = sink};
      expect_attend(oracle_attend(problem, &sets, options, eps.operand, eps.weight),
                    problem.attend(backend, ctx, &sets, options),
                    shape.name() + ", share " + std::to_string(share));
    }
  }
}

/// Of the rows that a set left out, those that see the token as a first key or within their band.
TEST_P(CudaDevice, NanInAValueReachesTheLeftOutRowsThatSeeItAndNoOther) {
  constexpr int32_t kRows = 1500, kSink = 40, kBand = 100;
  const Options options = {.dropped = TSP_DROPPED_LOCAL, .band = kBand, .sink = kSink};
  for (const float poison :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (const int32_t bad : {7, 39, 40, 900, 1499}) {
      Problem problem(bf16_shape(kRows, kRows, 4, 2, 128));
      const Sets sets = problem.random_sets(TSP_SHARE_LAYER, 0.3f, 64, 5);
      const std::vector<int32_t>& kept = sets[0][0];
      const AttendResult clean = problem.attend(backend, ctx, &sets, options);
      problem.v.set(bad, 1, 9, poison);
      const AttendResult got = problem.attend(backend, ctx, &sets, options);
      const bool bad_kept = std::binary_search(kept.begin(), kept.end(), bad);
      for (int32_t row = 0; row < kRows; ++row) {
        const bool is_kept = std::binary_search(kept.begin(), kept.end(), row);
        const bool reads = row >= bad && (is_kept ? bad_kept : bad < kSink || bad > row - kBand);
        for (int64_t head = 0; head < 4; ++head) {
          for (int64_t d = 0; d < 128; ++d) {
            const float value = got.out.at(row, head, d);
            if (reads && head >= 2 && d == 9) {
              ASSERT_FALSE(std::isfinite(value)) << bad << " " << row;
            } else {
              ASSERT_EQ(value, clean.out.at(row, head, d)) << bad << " " << row << " " << d;
            }
          }
        }
      }
    }
  }
}

TEST_P(CudaDevice, WhenItPaysLongSequencesAreSparseAndShortOnesExact) {
  Options options = {.window = 64,
                     .min_tokens = 20,
                     .share = TSP_SHARE_KV_GROUP,
                     .keep = 0.2f,
                     .dropped = TSP_DROPPED_LOCAL,
                     .sink = 16,
                     .when = TSP_WHEN_PAYS};
  Problem problem({.q_lens = {300, 9000, 40, 4096},
                   .k_lens = {300, 9000, 9000, 4096},
                   .num_q_heads = 14,
                   .num_kv_heads = 2,
                   .q_dtype = TSP_BF16,
                   .kv_dtype = TSP_BF16,
                   .out_dtype = TSP_BF16});
  const Sets all = problem.random_sets(TSP_SHARE_KV_GROUP, 1.0f, 8, 5);
  const Sets given = problem.random_sets(TSP_SHARE_KV_GROUP, 0.1f, 8, 5);
  const AttendResult chosen = problem.prefill(backend, ctx, options);
  const AttendResult attended = problem.prefill(backend, ctx, options, &given);
  EXPECT_LT(chosen.sets[1][0].size(), 2000u);
  EXPECT_EQ(attended.sets[1], given[1]);
  for (const AttendResult* result : {&chosen, &attended}) {
    EXPECT_EQ(result->sets[0], all[0]) << "few keys";
    EXPECT_EQ(result->sets[2], all[2]) << "few queries";
    EXPECT_EQ(result->sets[3], all[3]) << "few keys for heads of 64 channels";
  }
  for (size_t i = 0; i < 4; ++i) {  // what is told beforehand is what happened
    int32_t pays = 7;
    ASSERT_EQ(tsp_prefill_pays(ctx.get(), problem.shape.q_lens[i], problem.shape.k_lens[i], 14, 64,
                               &pays),
              TSP_OK);
    EXPECT_EQ(pays, i == 1 ? 1 : 0) << i;
  }
  options.when = TSP_WHEN_ALWAYS;
  EXPECT_EQ(problem.prefill(backend, ctx, options, &given).sets, given);
}

/// cuDNN's plan for lengths on the device is another kernel than its plan for lengths that the host
/// knows, and the two round differently: by one step of bf16, or of 0.25 where values are smaller
/// (sums of larger ones). How far each may be from the exact result is the oracle's business above.
TEST_P(CudaDevice, SetsThatKeepAllGiveTheDenseResult) {
  for (const Shape& shape : {bf16_shape(1500, 1500, 4, 2, 64), bf16_shape(1536, 1536, 4, 2, 128),
                             bf16_shape(1025, 1025, 4, 2, 128), bf16_shape(300, 1700, 4, 2, 128)}) {
    Problem problem(shape);
    const Sets all = problem.random_sets(TSP_SHARE_HEAD, 1.0f, 128, 5);
    const AttendResult gathered = problem.attend(backend, ctx, &all, {});
    const AttendResult dense = problem.attend(backend, ctx, nullptr, {});
    for (int64_t row = 0; row < shape.q_lens[0]; ++row) {
      for (int64_t head = 0; head < shape.num_q_heads; ++head) {
        for (int64_t d = 0; d < shape.dim; ++d) {
          const auto want = static_cast<double>(dense.out.at(row, head, d));
          ASSERT_NEAR(gathered.out.at(row, head, d), want, std::max(std::abs(want), 0.25) * 0x1p-7)
              << shape.name() << " " << row << " " << head << " " << d;
        }
      }
    }
  }
}

TEST_P(CudaDevice, NanInAValueReachesTheRowsThatSeeItAndNoOther) {
  for (const bool sparse : {false, true}) {
    Problem problem(bf16_shape(1600, 1600, 4, 2, 128));
    const Sets sets = problem.random_sets(TSP_SHARE_LAYER, 0.6f, 128, 5);
    const Sets* selected = sparse ? &sets : nullptr;
    const AttendResult clean = problem.attend(backend, ctx, selected, {});
    const int32_t bad = sets[0][0][700];
    problem.v.set(bad, 1, 9, std::numeric_limits<float>::quiet_NaN());
    const AttendResult got = problem.attend(backend, ctx, selected, {});
    for (int64_t row = 0; row < 1600; ++row) {
      const bool kept = !sparse || std::binary_search(sets[0][0].begin(), sets[0][0].end(), row);
      for (int64_t head = 0; head < 4; ++head) {
        for (int64_t d = 0; d < 128; ++d) {
          if (kept && row >= bad && head >= 2 && d == 9) {
            ASSERT_TRUE(std::isnan(got.out.at(row, head, d))) << row;
          } else {
            ASSERT_EQ(got.out.at(row, head, d), clean.out.at(row, head, d)) << row << " " << d;
          }
        }
      }
    }
  }
}

TEST_P(CudaDevice, PrefillIsScoreSelectAttend) {
  for (const int32_t share : {TSP_SHARE_HEAD, TSP_SHARE_KV_GROUP, TSP_SHARE_LAYER}) {
    for (const Shape& shape :
         {bf16_shape(3000, 3000, 8, 2, 64), bf16_shape(700, 2900, 8, 4, 128)}) {
      Problem problem(shape);
      const Options options = {.min_tokens = 200, .share = share, .coverage = 0.2f};
      Tensor scores = problem.score(backend, ctx, options);
      const Sets sets = problem.select(backend, ctx, scores, options);
      const AttendResult whole = problem.prefill(backend, ctx, options);
      EXPECT_LT(sets[0][0].size(), 2900u);
      EXPECT_EQ(whole.sets, sets);
      EXPECT_EQ(whole.out.bits(), problem.attend(backend, ctx, &sets, options).out.bits());
    }
  }
}

constexpr Options kLocal = {.min_tokens = 200,
                            .share = TSP_SHARE_KV_GROUP,
                            .coverage = 0.2f,
                            .dropped = TSP_DROPPED_LOCAL,
                            .band = 100,
                            .sink = 32};

TEST_P(CudaDevice, RepeatsGiveTheSameBits) {
  Problem problem(bf16_shape(3000, 3000, 8, 2, 128));
  DevicePrefill prefill(backend, ctx, problem, kLocal);
  prefill.enqueue();
  const auto bits = prefill.bits();
  for (int repeat = 0; repeat < 20; ++repeat) {
    prefill.enqueue();
    ASSERT_EQ(prefill.bits(), bits) << repeat;
  }
}

/// Holds a stream back until it is let go.
struct Gate {
  static void wait(void* gate) {
    while (!static_cast<std::atomic<bool>*>(gate)->load()) std::this_thread::yield();
  }
  std::atomic<bool> open{false};
};

TEST_P(CudaDevice, NothingSynchronises) {
  cudaStream_t stream = nullptr;
  require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  require(cudaStreamSynchronize(stream));
  Problem problem(bf16_shape(2000, 2000, 8, 2, 128));
  ASSERT_EQ(tsp_context_set_stream(ctx.get(), stream), TSP_OK);
  DevicePrefill prefill(backend, ctx, problem, kLocal);
  prefill.enqueue();  // modules are loaded now
  require(cudaStreamSynchronize(stream));
  const auto bits = prefill.bits();
  Gate gate;
  require(cudaLaunchHostFunc(stream, Gate::wait, &gate.open));
  // A call that waited for the stream would wait for ever: the gate opens after it.
  prefill.enqueue();
  EXPECT_EQ(cudaStreamQuery(stream), cudaErrorNotReady);
  gate.open = true;
  require(cudaStreamSynchronize(stream));
  EXPECT_EQ(prefill.bits(), bits);
  require(cudaStreamDestroy(stream));
}

/// Captures prefill once and replays it on tensors of other content.
void expect_replays(const Backend& backend, tokensparse::Context& ctx,
                    const tsp_pattern_t* pattern) {
  cudaStream_t stream = nullptr;
  require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  ASSERT_EQ(tsp_context_set_stream(ctx.get(), stream), TSP_OK);
  const Options options = {
      .min_tokens = 200, .coverage = 0.1f, .dropped = TSP_DROPPED_LOCAL, .band = 100, .sink = 32};
  Shape shape = bf16_shape(2500, 2500, 8, 2, 128);
  Problem first(shape);
  DevicePrefill prefill(backend, ctx, first, options, pattern);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  prefill.enqueue();
  require(cudaStreamEndCapture(stream, &graph));
  require(cudaGraphInstantiate(&exec, graph, 0));
  std::vector<int32_t> counts;
  for (const uint32_t seed : {7u, 8u, 9u}) {
    shape.seed = seed;
    shape.logit_scale = seed == 9 ? 3.f : 1.f;  // keeps another share
    Problem problem(shape);
    const auto copy = [&](const Tensor& tensor, tsp_tensor_t device) {
      require(cudaMemcpy(device.data, tensor.view().data, tensor.bytes().size(),
                         cudaMemcpyHostToDevice));
    };
    copy(problem.q, prefill.q_view());
    copy(problem.k, prefill.k_view());
    problem.v = first.v;
    require(cudaGraphLaunch(exec, stream));
    require(cudaStreamSynchronize(stream));
    counts.push_back(prefill.kept());
    const AttendResult alone = problem.prefill(backend, ctx, options, nullptr, nullptr, pattern);
    EXPECT_EQ(prefill.bits(), alone.out.bits()) << seed;
  }
  EXPECT_NE(counts[0], counts[2]);
  require(cudaGraphExecDestroy(exec));
  require(cudaGraphDestroy(graph));
  ASSERT_EQ(tsp_context_set_stream(ctx.get(), nullptr), TSP_OK);
  require(cudaStreamDestroy(stream));
}

TEST_P(CudaDevice, AGraphReplaysWithNewContent) { expect_replays(backend, ctx, nullptr); }

TEST_P(CudaDevice, AGraphOfABlockPatternReplaysWithNewContent) {
  for (const int32_t kind :
       {TSP_PATTERN_XATTENTION, TSP_PATTERN_FLEXPREFILL, TSP_PATTERN_POOLED, TSP_PATTERN_FLASH}) {
    tsp_pattern_t pattern;
    tsp_pattern_init(&pattern, kind);
    pattern.min_budget = 256;
    expect_replays(backend, ctx, &pattern);
  }
}

TEST_P(CudaDevice, TwoStreamsAtOnceDoNotMeet) {
  const Options options = {.min_tokens = 200, .coverage = 0.2f};
  std::vector<std::unique_ptr<Problem>> problems;
  std::vector<std::unique_ptr<DevicePrefill>> runs;
  std::vector<tokensparse::Context> contexts(2);
  std::vector<cudaStream_t> streams(2);
  std::vector<std::vector<uint32_t>> alone;
  for (size_t i = 0; i < 2; ++i) {
    require(cudaStreamCreateWithFlags(&streams[i], cudaStreamNonBlocking));
    contexts[i] = backend.open();
    ASSERT_EQ(tsp_context_set_stream(contexts[i].get(), streams[i]), TSP_OK);
    Shape shape = bf16_shape(2000, 2000, 8, 2, 64);
    shape.seed = static_cast<uint32_t>(20 + i);
    problems.push_back(std::make_unique<Problem>(shape));
    runs.push_back(std::make_unique<DevicePrefill>(backend, contexts[i], *problems[i], options));
    runs[i]->enqueue();
    require(cudaStreamSynchronize(streams[i]));
    alone.push_back(runs[i]->bits());
  }
  for (int repeat = 0; repeat < 10; ++repeat) {
    for (auto& run : runs) run->enqueue();
  }
  require(cudaDeviceSynchronize());
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(runs[i]->bits(), alone[i]);
    require(cudaStreamDestroy(streams[i]));
  }
}

TEST_P(CudaDevice, BadInputIsRefusedByNameAndTheContextStaysUsable) {
  Problem problem(bf16_shape(300, 300, 4, 2, 64));
  const auto good = problem.attend(backend, ctx, nullptr, {}).out.bits();
  OnDevice q(backend, problem.q), k(backend, problem.k), v(backend, problem.v);
  Tensor out_host(TSP_BF16, {300}, 4, 64);
  OnDevice out(backend, out_host);
  Bytes workspace(backend, size_t{1} << 20);
  const auto base = [&] {
    tokensparse::AttendParams p;
    p.q = q.view();
    p.k = k.view();
    p.v = v.view();
    p.out = out.view();
    p.workspace = workspace.data();
    p.workspace_bytes = workspace.size();
    return p;
  };
  const auto refused = [&](tokensparse::AttendParams p, const char* word) {
    EXPECT_NE(tsp_attend(ctx.get(), &p), TSP_OK) << word;
    EXPECT_NE(std::string(tsp_last_error()).find(word), std::string::npos) << tsp_last_error();
  };
  tokensparse::AttendParams p = base();
  p.q.data = problem.q.view().data;
  refused(p, "q: must be memory of CUDA device");
  p = base();
  p.k.data = static_cast<char*>(p.k.data) + 2;
  refused(p, "k.data");
  p = base();
  p.q.token_stride += 1;
  refused(p, "token_stride");
  p = base();
  p.workspace_bytes = 1;
  refused(p, "workspace: must hold");
  std::vector<unsigned char> host(size_t{1} << 20);
  p = base();
  p.workspace = host.data() + (64 - reinterpret_cast<uintptr_t>(host.data()) % 64);
  p.workspace_bytes -= 64;
  refused(p, "workspace: must be memory of CUDA device");
  p = base();
  p.q.dim = p.k.dim = p.v.dim = p.out.dim = 32;
  refused(p, "dim: the cuda backend takes 64 and 128, got 32");
  p = base();
  p.q.dtype = TSP_F32;
  refused(p, "q.dtype: the cuda backend takes f16 and bf16, got f32");
  EXPECT_EQ(problem.attend(backend, ctx, nullptr, {}).out.bits(), good);

  tokensparse::ContextOptions options;
  options.backend = TSP_BACKEND_CUDA;
  options.device = 99;
  tokensparse::Context other;
  const tokensparse::Status status = tokensparse::Context::create(options, &other);
  EXPECT_NE(status.message().find("device: must be between"), std::string::npos);
  options.device = 0;
  options.isa = "sm_10";
  EXPECT_FALSE(tokensparse::Context::create(options, &other).ok());
}

TEST_P(CudaDevice, AStreamOfAnotherDeviceIsRefused) {
  int count = 0;
  require(cudaGetDeviceCount(&count));
  if (count < 2) GTEST_SKIP() << "needs two devices";
  cudaStream_t stream = nullptr;
  require(cudaSetDevice(1));
  require(cudaStreamCreate(&stream));
  require(cudaSetDevice(0));
  ASSERT_EQ(tsp_context_set_stream(ctx.get(), stream), TSP_OK);
  Problem problem(bf16_shape(300, 300, 4, 2, 64));
  EXPECT_THROW(problem.attend(backend, ctx, nullptr, {}), std::runtime_error);
  EXPECT_NE(std::string(tsp_last_error()).find("stream"), std::string::npos);
  require(cudaStreamDestroy(stream));
}

/// One head, a Mi tokens: positions, offsets and counts far beyond 2^16 and byte offsets beyond
/// 2^27. Indices must be what the reference selects from the same scores.
TEST_P(CudaDevice, AMebitokenIsServed) {
  constexpr int32_t kTokens = 1 << 20, kQueries = 256;
  Problem problem(bf16_shape(kQueries, kTokens, 2, 1, 64));
  const Options options = {.coverage = 0.5f};
  Tensor scores = problem.score(backend, ctx, options);
  double mass = 0;
  for (int64_t t = 0; t < scores.tokens(); ++t) mass += static_cast<double>(scores.at(t, 0));
  EXPECT_NEAR(mass, 1.0, 1e-3);
  const Backend ref = all_backends().front();
  tokensparse::Context ref_ctx = ref.open();
  const Sets sets = problem.select(backend, ctx, scores, options);
  EXPECT_EQ(sets, problem.select(ref, ref_ctx, scores, options));
  const AttendResult whole = problem.prefill(backend, ctx, options);
  EXPECT_EQ(whole.sets, sets);
  for (int64_t row = 0; row < kQueries; ++row) ASSERT_TRUE(std::isfinite(whole.out.at(row, 1, 63)));
}

/// Clusters of blocks whose keys fit shared memory or do not. 90,000 tokens: a block of a cluster
/// keeps 48 KB of keys, and has some more shared memory.
TEST_P(CudaDevice, SetsOfALongPrompt) {
  const Backend ref = all_backends().front();
  tokensparse::Context ref_ctx = ref.open();
  for (const Shape& shape : {bf16_shape(128, 140000, 17, 1, 64), bf16_shape(128, 90000, 17, 1, 64),
                             bf16_shape(128, 131200, 3, 1, 64), bf16_shape(128, 131201, 3, 1, 64),
                             bf16_shape(128, 90000, 2, 1, 64)}) {
    Problem problem(shape);
    const Options options = {.coverage = 0.3f};
    Tensor scores = problem.score(backend, ctx, options);
    EXPECT_EQ(problem.select(backend, ctx, scores, options),
              problem.select(ref, ref_ctx, scores, options))
        << shape.name();
  }
}

/// More K tiles than a block has stages for, lengths that are no multiple of anything.
TEST_P(CudaDevice, ScoresOfALongPrompt) {
  const Backend ref = all_backends().front();
  tokensparse::Context ref_ctx = ref.open();
  for (const Shape& shape :
       {bf16_shape(300, 70001, 4, 1, 64), bf16_shape(128, 131201, 2, 1, 128)}) {
    Problem problem(shape);
    const Tensor scores = problem.score(backend, ctx, {});
    const Tensor expected = problem.score(ref, ref_ctx, {});
    ASSERT_EQ(scores.tokens(), expected.tokens());
    for (int64_t token = 0; token < scores.tokens(); ++token) {
      for (int64_t head = 0; head < shape.num_q_heads; ++head) {
        const float want = expected.at(token, head);
        ASSERT_NEAR(scores.at(token, head), want, 2e-3f * want + 1e-9f)
            << shape.name() << " " << token << " " << head;
      }
    }
  }
}

TEST_P(CudaDevice, ScoresOfMoreHeadsThanFitAtOnce) {
  for (const Shape& shape :
       {bf16_shape(128, 700, 300, 300, 64), bf16_shape(40, 700, 160, 80, 64)}) {
    Problem problem(shape);
    const Backend ref = all_backends().front();
    tokensparse::Context ref_ctx = ref.open();
    Tensor scores = problem.score(backend, ctx, {});
    Tensor expected = problem.score(ref, ref_ctx, {});
    for (int64_t token = 0; token < 700 - std::min(shape.q_lens[0], 128); ++token) {
      for (int64_t head = 0; head < shape.num_q_heads; ++head) {
        ASSERT_NEAR(scores.at(token, head), expected.at(token, head), 1e-4)
            << shape.name() << " " << token << " " << head;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, CudaDevice, ::testing::ValuesIn(cuda_backends()),
                         [](const auto& instance) { return instance.param.name; });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CudaDevice);

}  // namespace
}  // namespace tsp::test
