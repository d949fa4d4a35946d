// SPDX-License-Identifier: MIT
// Matrix products through oneDNN, on nodes made with ggml's own constructors: error against double
// precision and against ggml's result, which nodes are refused, and what memory it takes.
#include "adapters/ggml/linear_node.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "adapters/ggml/onednn.h"
#include "tests/ggml/linear_server.h"

namespace tsp::ggml_adapter {
namespace {

using Node = test::ProductNode;
using Shape = test::ProductShape;
using test::error_of, test::make_server;

LinearOptions options_of(LinearPrecision precision) {
  LinearOptions options;
  options.threads = 2;
  options.precision = precision;
  options.type_traits = ggml_get_type_traits;
  return options;
}

bool has_bf16() {
  std::string why;
  const auto library = OneDnn::open("", 1, why);
  return library != nullptr && library->has_bf16();
}

class WeightType : public testing::TestWithParam<ggml_type> {
 protected:
  // Rows and columns that fill no tile of the library.
  Shape shape_ = {.m = 131, .n = 77, .k = 512, .type = GetParam()};
};

// Weights and activations rounded to 8 significant bits, steps of 2^-7 of a value at most: the RMS
// of a step is its size by the root of 12, and two of them add as squares.
constexpr double kBf16Error = 1.0 / 128 * 0.2887 * 1.4143;

TEST_P(WeightType, Bf16IsOffByTwoRoundings) {
  if (!has_bf16()) GTEST_SKIP() << "no bf16 dot product on this processor";
  Node node(shape_);
  const auto server = make_server(options_of(LinearPrecision::kBf16));
  const double ours = error_of(node, *server);
  EXPECT_LT(ours, kBf16Error);
  node.run_ggml();
  RecordProperty("ours", std::to_string(ours));
  RecordProperty("ggml", std::to_string(node.error()));
}

TEST_P(WeightType, Bf16IsCloserThanGgmlWhereGgmlQuantisesTheActivations) {
  if (!has_bf16()) GTEST_SKIP() << "no bf16 dot product on this processor";
  if (!ggml_is_quantized(GetParam())) GTEST_SKIP() << "ggml keeps f16 and bf16 activations";
  Node node(shape_);
  const auto server = make_server(options_of(LinearPrecision::kBf16));
  const double ours = error_of(node, *server);
  node.run_ggml();
  EXPECT_LT(ours, node.error());
}

TEST_P(WeightType, F32IsExactToRounding) {
  Node node(shape_);
  const auto server = make_server(options_of(LinearPrecision::kF32));
  EXPECT_LT(error_of(node, *server), 1e-6);
}

INSTANTIATE_TEST_SUITE_P(All, WeightType,
                         testing::Values(GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0,
                                         GGML_TYPE_Q5_1, GGML_TYPE_Q8_0, GGML_TYPE_Q2_K,
                                         GGML_TYPE_Q3_K, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K,
                                         GGML_TYPE_Q6_K, GGML_TYPE_F16, GGML_TYPE_BF16),
                         [](const auto& type) { return ggml_type_name(type.param); });

TEST(LinearNode, LargeNodesAreCutAndMemoryStaysBounded) {
  for (const LinearPrecision precision : {LinearPrecision::kAuto, LinearPrecision::kF32}) {
    const auto server = make_server(options_of(precision));
    Node node({.m = 1700, .n = 700, .k = 16384});
    EXPECT_LT(error_of(node, *server, 23), kBf16Error);
    EXPECT_GT(node.error(23), 0);
    const float* end = node.result() + 1700 * 700;
    EXPECT_EQ(
        std::find_if(node.result(), const_cast<float*>(end), [](float x) { return std::isnan(x); }),
        end);
    const size_t first = server->buffer_bytes();
    EXPECT_LT(first, LinearServer::max_buffer_bytes() + (4u << 20));
    Node longer({.m = 3300, .n = 530, .k = 16384});
    EXPECT_LT(error_of(longer, *server, 37), kBf16Error);
    EXPECT_LT(server->buffer_bytes(), LinearServer::max_buffer_bytes() + (4u << 20));
  }
}

TEST(LinearNode, KeepsWeightsAsFarAsItMay) {
  LinearOptions options = options_of(LinearPrecision::kAuto);
  const Shape shape = {.m = 200, .n = 512, .k = 1024};
  const size_t element = make_server(options)->rounds() ? 2 : 4;
  options.keep_bytes = 512 * 1024 * element + 100;
  const auto server = make_server(options);
  Node first(shape), second(shape, 2);
  EXPECT_LT(error_of(first, *server), kBf16Error);
  EXPECT_EQ(server->kept_bytes(), 512 * 1024 * element);
  EXPECT_LT(error_of(second, *server), kBf16Error) << "dequantised for the occasion";
  EXPECT_EQ(server->kept_bytes(), 512 * 1024 * element);
  const double spent = server->stats().weight_s;
  std::fill_n(first.result(), 200 * 512, 0.0f);
  EXPECT_LT(error_of(first, *server), kBf16Error);
  EXPECT_EQ(server->stats().weight_s, spent);
}

TEST(LinearNode, ResultsDoNotDependOnWhatRanBefore) {
  const auto server = make_server(options_of(LinearPrecision::kAuto));
  const Shape shape = {.m = 96, .n = 128, .k = 512};
  Node node(shape);
  error_of(node, *server);
  const std::vector<float> before(node.result(), node.result() + 96 * 128);
  Node other({.m = 500, .n = 300, .k = 2048}, 7);
  error_of(other, *server);
  error_of(node, *server);
  EXPECT_TRUE(std::equal(before.begin(), before.end(), node.result()));
}

// OMP_THREAD_LIMIT, OMP_DYNAMIC and OMP_MAX_ACTIVE_LEVELS make OpenMP hand out fewer threads than
// it is asked for, and a program may change them at any time.
TEST(LinearNode, TeamsSmallerThanAskedForComputeTheSame) {
  const int levels = omp_get_max_active_levels();
  const Shape shape = {.m = 300, .n = 256, .k = 512};
  for (const LinearPrecision precision : {LinearPrecision::kAuto, LinearPrecision::kF32}) {
    for (const bool small_first : {true, false}) {
      const auto server = make_server(options_of(precision));
      for (int call = 0; call < 4; ++call) {
        omp_set_max_active_levels((call % 2 == 0) == small_first ? 0 : levels);
        Node node(shape);
        EXPECT_LT(error_of(node, *server), kBf16Error) << "call " << call;
      }
      omp_set_max_active_levels(0);
      Node node(shape);
      ASSERT_EQ(server->check(*node.get()), LinearRefusal::kNone);
      omp_set_max_active_levels(levels);
      ASSERT_TRUE(server->serve(*node.get()));
      EXPECT_LT(node.error(), kBf16Error) << "changed between check() and serve()";
    }
  }
}

TEST(LinearNode, LeavesOpenMpsSettingsAsTheyWere) {
  const int threads = omp_get_max_threads(), dynamic = omp_get_dynamic();
  omp_set_num_threads(7);
  omp_set_dynamic(1);
  Node node({});
  const auto server = make_server(options_of(LinearPrecision::kAuto));
  EXPECT_LT(error_of(node, *server), kBf16Error);
  EXPECT_EQ(omp_get_max_threads(), 7);
  EXPECT_EQ(omp_get_dynamic(), 1);
  omp_set_num_threads(threads);
  omp_set_dynamic(dynamic);
}

TEST(LinearNode, CountsWhatItServes) {
  const auto server = make_server(options_of(LinearPrecision::kAuto));
  Node node({.m = 64, .n = 96, .k = 256});
  error_of(node, *server);
  error_of(node, *server);
  EXPECT_EQ(server->stats().served, 2);
  EXPECT_EQ(server->stats().served_rows, 128);
  EXPECT_NEAR(server->stats().gflop, 2 * 2e-9 * 64 * 96 * 256, 1e-12);
}

class LinearRefusals : public testing::Test {
 protected:
  void expect(LinearRefusal refusal, const ggml_tensor& node) {
    EXPECT_EQ(server_->check(node), refusal);
    EXPECT_EQ(server_->stats().refused[static_cast<size_t>(refusal)], 1) << refusal_text(refusal);
    server_->reset_stats();
  }
  std::unique_ptr<LinearServer> server_ = make_server(options_of(LinearPrecision::kAuto));
};

TEST_F(LinearRefusals, FewRows) { expect(LinearRefusal::kFewRows, *Node({.m = 63}).get()); }

TEST_F(LinearRefusals, F32Weights) {
  expect(LinearRefusal::kWeightType, *Node({.type = GGML_TYPE_F32}).get());
}

TEST_F(LinearRefusals, OtherOperationsAreNotCounted) {
  Node node({});
  const ggml_tensor* sum = ggml_add(node.ctx(), node.get(), node.get());
  EXPECT_EQ(server_->check(*sum), LinearRefusal::kNotLinear);
  for (const int64_t count : server_->stats().refused) EXPECT_EQ(count, 0);
}

TEST_F(LinearRefusals, ComputedWeights) {
  Node node({.type = GGML_TYPE_F16});
  ggml_tensor* view = ggml_view_2d(node.ctx(), node.weight(), 256, 64, node.weight()->nb[1], 0);
  expect(LinearRefusal::kNotWeight, *ggml_mul_mat(node.ctx(), view, node.input()));
}

TEST_F(LinearRefusals, GraphInputsAreNoWeights) {
  Node node({.type = GGML_TYPE_F16});
  ggml_set_input(node.weight());
  expect(LinearRefusal::kNotWeight, *node.get());
}

TEST_F(LinearRefusals, RepackedWeights) {
  Node node({.type = GGML_TYPE_Q4_K});
  int mark = 0;
  node.weight()->extra = &mark;  // as ggml's repacking and split buffers do
  expect(LinearRefusal::kRepacked, *node.get());
}

TEST_F(LinearRefusals, Experts) {
  Node node({});
  ggml_tensor* experts = ggml_new_tensor_3d(node.ctx(), GGML_TYPE_F16, 64, 32, 4);
  ggml_tensor* input = ggml_new_tensor_3d(node.ctx(), GGML_TYPE_F32, 64, 2, 100);
  ggml_tensor* ids = ggml_new_tensor_2d(node.ctx(), GGML_TYPE_I32, 2, 100);
  expect(LinearRefusal::kExperts, *ggml_mul_mat_id(node.ctx(), experts, input, ids));
}

TEST_F(LinearRefusals, BatchedWeights) {
  Node node({});
  ggml_tensor* weights = ggml_new_tensor_3d(node.ctx(), GGML_TYPE_F16, 64, 32, 2);
  ggml_tensor* input = ggml_new_tensor_3d(node.ctx(), GGML_TYPE_F32, 64, 100, 2);
  expect(LinearRefusal::kBatched, *ggml_mul_mat(node.ctx(), weights, input));
}

TEST_F(LinearRefusals, StridedActivations) {
  Node node({});
  ggml_tensor* wide = ggml_new_tensor_2d(node.ctx(), GGML_TYPE_F32, 512, 64);
  ggml_tensor* half = ggml_view_2d(node.ctx(), wide, 256, 64, wide->nb[1], 0);
  expect(LinearRefusal::kLayout, *ggml_mul_mat(node.ctx(), node.weight(), half));
}

TEST(LinearServer, SaysWhyThereIsNoLibrary) {
  LinearOptions options = options_of(LinearPrecision::kAuto);
  options.library = "/nowhere/libdnnl.so.3";
  std::string why;
  EXPECT_EQ(LinearServer::create(options, why), nullptr);
  EXPECT_NE(why.find("/nowhere/libdnnl.so.3"), std::string::npos) << why;
}

TEST(LinearServer, RefusesALibraryThatIsNotOneDnn) {
  LinearOptions options = options_of(LinearPrecision::kAuto);
  options.library = "libm.so.6";
  std::string why;
  EXPECT_EQ(LinearServer::create(options, why), nullptr);
  EXPECT_EQ(why, "oneDNN cannot be used: it has no dnnl_version");
}

}  // namespace
}  // namespace tsp::ggml_adapter
