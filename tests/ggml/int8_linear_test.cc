// SPDX-License-Identifier: MIT
// Linear layers in 8-bit integers, on nodes made with ggml's own constructors: error against double
// precision for every type of weights, beside ggml's.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "adapters/ggml/int8/kernels.h"
#include "adapters/ggml/int8/layout.h"
#include "adapters/ggml/linear_node.h"
#include "tests/ggml/product_node.h"

namespace tsp::ggml_adapter {
namespace {

using Node = test::ProductNode;
using Shape = test::ProductShape;

void run_on_threads(void*, int32_t num_threads, void (*fn)(void* arg, int32_t i), void* arg) {
  std::vector<std::thread> threads;
  for (int32_t i = 0; i < num_threads; ++i) threads.emplace_back(fn, arg, i);
  for (std::thread& thread : threads) thread.join();
}

LinearOptions int8_options(int32_t threads = 2) {
  LinearOptions options;
  options.kind = LinearKind::kInt8;
  options.threads = threads;
  options.parallel = run_on_threads;
  options.type_traits = ggml_get_type_traits;
  return options;
}

std::unique_ptr<LinearServer> make_server(const LinearOptions& options) {
  std::string why;
  auto server = LinearServer::create(options, why);
  EXPECT_NE(server, nullptr) << why;
  return server;
}

double error_of(Node& node, LinearServer& server, int64_t step = 1) {
  EXPECT_EQ(server.check(*node.get()), LinearRefusal::kNone);
  EXPECT_TRUE(server.serve(*node.get()));
  return node.error(step);
}

// Weights and activations rounded to steps of 1/127 of the largest of 128 values: 2.75 standard
// deviations on average and 3.6 in one of 25 groups. The RMS of a rounding is a step by the root of
// 12, and two of them add as squares.
constexpr double kInt8Error = 3.0 / 127 * 0.2887 * 1.4143;

class Int8 : public testing::Test {
 protected:
  void SetUp() override {
    if (int8::best_kernels() == nullptr) GTEST_SKIP() << "no AVX512-VNNI on this processor";
  }
};

class Int8WeightType : public Int8, public testing::WithParamInterface<ggml_type> {};

TEST_P(Int8WeightType, IsOffByTwoRoundings) {
  // Rows and columns that fill no tile and no panel.
  Node node({.m = 131, .n = 77, .k = 512, .type = GetParam()});
  const double ours = error_of(node, *make_server(int8_options()));
  EXPECT_LT(ours, kInt8Error);
  node.run_ggml();
  RecordProperty("ours", std::to_string(ours));
  RecordProperty("ggml", std::to_string(node.error()));
  std::printf("%s: ours %.5f ggml %.5f\n", ggml_type_name(GetParam()), ours, node.error());
}

INSTANTIATE_TEST_SUITE_P(All, Int8WeightType,
                         testing::Values(GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0,
                                         GGML_TYPE_Q5_1, GGML_TYPE_Q8_0, GGML_TYPE_Q2_K,
                                         GGML_TYPE_Q3_K, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K,
                                         GGML_TYPE_Q6_K, GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS),
                         [](const auto& type) { return ggml_type_name(type.param); });

}  // namespace
}  // namespace tsp::ggml_adapter
