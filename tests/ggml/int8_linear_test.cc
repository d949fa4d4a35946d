// SPDX-License-Identifier: MIT
// Linear layers in 8-bit integers, on nodes made with ggml's own constructors: error against double
// precision for every type of weights, beside ggml's.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "adapters/ggml/linear_node.h"
#include "adapters/ggml/panels/kernels.h"
#include "tests/ggml/linear_server.h"
#include "tests/ggml/run_on_threads.h"

namespace tsp::ggml_adapter {
namespace {

using Node = test::ProductNode;
using Shape = test::ProductShape;
using test::error_of, test::make_server, test::run_on_threads;

LinearOptions int8_options(int32_t threads = 2) {
  LinearOptions options;
  options.kind = LinearKind::kInt8;
  options.threads = threads;
  options.parallel = run_on_threads;
  options.type_traits = ggml_get_type_traits;
  return options;
}

// Weights and activations rounded to steps of 1/127 of the largest of 128 values: 2.75 standard
// deviations on average and 3.6 in one of 25 groups. The RMS of a rounding is a step by the root of
// 12, and two of them add as squares.
constexpr double kInt8Error = 3.0 / 127 * 0.2887 * 1.4143;

class Int8 : public testing::Test {
 protected:
  void SetUp() override {
    if (panels::int8_kernels().empty())
      GTEST_SKIP() << "no products of 8-bit integers on this processor";
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
}

// One activation in 32 is 100 times as large as the others, as in real models: ggml's groups of 32
// or 256 lose the others' bits.
TEST_P(Int8WeightType, OutliersCostLessThanInGgml) {
  Node node({.m = 66, .n = 64, .k = 512, .type = GetParam()});
  auto* input = static_cast<float*>(node.input()->data);
  for (int64_t i = 7; i < ggml_nelements(node.input()); i += 32) input[i] *= 100;
  // Weights that hear the outliers no louder than the rest.
  std::vector<float> values(512 * 64);
  ggml_get_type_traits(GetParam())->to_float(node.weight()->data, values.data(), 512 * 64);
  for (size_t i = 7; i < values.size(); i += 32) values[i] = 0;
  ggml_quantize_chunk(GetParam(), values.data(), node.weight()->data, 0, 64, 512, nullptr);
  const double ours = error_of(node, *make_server(int8_options()));
  node.run_ggml();
  EXPECT_LT(ours, node.error());
}

TEST_P(Int8WeightType, ReadsAnyBlockAsGgmlDoes) {
  const auto read = panels::int8_kernels().front()->reader(GetParam());
  if (read == nullptr) GTEST_SKIP() << "ggml's function reads it";
  const ggml_type_traits& traits = *ggml_get_type_traits(GetParam());
  constexpr int64_t kCount = 2048;
  std::vector<uint8_t> packed(static_cast<size_t>(kCount / traits.blck_size) * traits.type_size);
  std::vector<float> expected(kCount), ours(kCount);
  std::mt19937 random(1);
  for (int round = 0; round < 50; ++round) {
    for (uint8_t& byte : packed) byte = static_cast<uint8_t>(random());  // every bit pattern
    traits.to_float(packed.data(), expected.data(), kCount);
    read(packed.data(), ours.data(), kCount);
    float largest = 0;
    for (const float value : expected) {
      if (std::isfinite(value)) largest = std::max(largest, std::fabs(value));
    }
    for (size_t i = 0; i < expected.size(); ++i) {
      if (!std::isfinite(expected[i])) {
        EXPECT_FALSE(std::isfinite(ours[i])) << i;
      } else {  // a difference of two products may have been rounded once more
        EXPECT_NEAR(ours[i], expected[i], largest * 0x1p-22f) << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Int8WeightType,
                         testing::Values(GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0,
                                         GGML_TYPE_Q5_1, GGML_TYPE_Q8_0, GGML_TYPE_Q2_K,
                                         GGML_TYPE_Q3_K, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K,
                                         GGML_TYPE_Q6_K, GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS),
                         [](const auto& type) { return ggml_type_name(type.param); });

class Int8Linear : public Int8 {};

TEST_F(Int8Linear, TakesAnyShape) {
  const auto server = make_server(int8_options());
  for (const int64_t k : {32, 96, 160, 640}) {
    for (const int64_t n : {1, 31, 33}) {
      for (const int64_t m : {64, 65, 71}) {
        Node node({.m = m, .n = n, .k = k});
        EXPECT_LT(error_of(node, *server), 1.5 * kInt8Error) << m << " " << n << " " << k;
      }
    }
  }
}

TEST_F(Int8Linear, LargeNodesAreCutAndMemoryStaysBounded) {
  const auto server = make_server(int8_options());
  Node node({.m = 3400, .n = 1100, .k = 16384});  // blocks of rows, slices of the weight, passes
  EXPECT_LT(error_of(node, *server, 37), kInt8Error);
  EXPECT_GT(node.error(37), 0);
  const std::span<const float> result(node.result(), 3400 * 1100);
  EXPECT_TRUE(std::all_of(result.begin(), result.end(), [](float x) { return std::isfinite(x); }));
  EXPECT_LT(server->buffer_bytes(), LinearServer::max_buffer_bytes() + (1u << 20));
}

TEST_F(Int8Linear, GivesTheSameBitsOnAnyTeamAndWithKeptWeights) {
  const Shape shape = {.m = 700, .n = 300, .k = 7168};
  Node node(shape);
  error_of(node, *make_server(int8_options(1)), 53);
  const std::vector<float> expected(node.result(), node.result() + shape.m * shape.n);
  for (const int32_t threads : {2, 3, 4}) {
    for (const size_t keep_bytes : {0, 1 << 24}) {
      LinearOptions options = int8_options(threads);
      options.keep_bytes = keep_bytes;
      const auto server = make_server(options);
      for (int call = 0; call < 2; ++call) {
        std::fill_n(node.result(), shape.m * shape.n, std::nanf(""));
        error_of(node, *server, 53);
        EXPECT_TRUE(std::equal(expected.begin(), expected.end(), node.result()))
            << threads << " threads, " << server->kept_bytes() << " bytes kept, call " << call;
      }
    }
  }
}

TEST_F(Int8Linear, ProductsOfTheSameActivationsShareThemWithinAGraph) {
  LinearOptions options = int8_options();
  options.share_inputs = true;
  const auto server = make_server(options);
  const Shape shape = {.m = 70, .n = 40, .k = 256};
  Node node(shape);
  ggml_tensor second = *node.get();
  std::vector<float> out(static_cast<size_t>(shape.m * shape.n));
  second.data = out.data();
  const auto serve = [&](ggml_tensor& product) {
    EXPECT_EQ(server->check(product), LinearRefusal::kNone);
    EXPECT_TRUE(server->serve(product));
  };
  const auto same = [&] { return std::equal(out.begin(), out.end(), node.result()); };
  auto* input = static_cast<float*>(node.input()->data);
  serve(*node.get());
  input[0] += 100;  // nothing does so within a graph: it shows who looked again
  serve(second);
  EXPECT_TRUE(same());
  server->begin_graph();
  serve(second);
  EXPECT_FALSE(same()) << "a graph of other values";
  serve(*node.get());
  EXPECT_TRUE(same());
  input[0] += 100;
  serve(second);
  EXPECT_FALSE(same()) << "its own product again: another graph";
  serve(*node.get());
  EXPECT_TRUE(same());
  input[0] += 100;
  Node larger({.m = 640, .n = 40, .k = 256});  // memory of its own
  ASSERT_EQ(server->check(*larger.get()), LinearRefusal::kNone);
  serve(*node.get());
  EXPECT_FALSE(same()) << "what was there is gone";
  serve(*larger.get());
  serve(second);
  EXPECT_TRUE(same()) << "other activations lay there";
}

TEST_F(Int8Linear, ActivationsAreNotSharedUnasked) {
  const auto server = make_server(int8_options());
  Node node({.m = 70, .n = 40, .k = 256});
  ggml_tensor second = *node.get();
  std::vector<float> out(70 * 40);
  second.data = out.data();
  error_of(node, *server);
  static_cast<float*>(node.input()->data)[0] += 100;
  ASSERT_EQ(server->check(second), LinearRefusal::kNone);
  ASSERT_TRUE(server->serve(second));
  EXPECT_FALSE(std::equal(out.begin(), out.end(), node.result()));
}

TEST_F(Int8Linear, ComputesOnTheCallingThreadWithoutOthers) {
  LinearOptions options = int8_options(4);
  options.parallel = nullptr;
  Node node({.m = 100, .n = 50, .k = 256});
  EXPECT_LT(error_of(node, *make_server(options)), kInt8Error);
}

TEST_F(Int8Linear, WhatIsNoNumberStaysInItsRow) {
  const Shape shape = {.m = 64, .n = 40, .k = 256};
  Node node(shape);
  auto* input = static_cast<float*>(node.input()->data);
  input[3 * shape.k + 100] = std::nanf("");
  input[20 * shape.k + 255] = -std::numeric_limits<float>::infinity();
  error_of(node, *make_server(int8_options()));
  for (int64_t m = 0; m < shape.m; ++m) {
    for (int64_t n = 0; n < shape.n; ++n) {
      EXPECT_EQ(std::isnan(node.result()[m * shape.n + n]), m == 3 || m == 20) << m << ", " << n;
    }
  }
}

TEST_F(Int8Linear, ZerosAndTheSmallestValuesGiveZero) {
  const Shape shape = {.m = 64, .n = 40, .k = 256};
  Node node(shape);
  auto* input = static_cast<float*>(node.input()->data);
  std::fill_n(input, shape.k, 0.0f);
  std::fill_n(input + shape.k, shape.k, std::numeric_limits<float>::denorm_min());
  const auto server = make_server(int8_options());
  ASSERT_EQ(server->check(*node.get()), LinearRefusal::kNone);
  ASSERT_TRUE(server->serve(*node.get()));
  for (int64_t i = 0; i < 2 * shape.n; ++i) EXPECT_EQ(node.result()[i], 0) << i;
}

TEST_F(Int8Linear, ExtremeScalesCancel) {
  for (const float factor : {1e-25f, 1e30f}) {
    Node node({.m = 64, .n = 40, .k = 256});
    auto* input = static_cast<float*>(node.input()->data);
    for (int64_t i = 0; i < 64 * 256; ++i) input[i] *= factor;
    EXPECT_LT(error_of(node, *make_server(int8_options())), kInt8Error) << factor;
  }
}

TEST_F(Int8Linear, WeightsThatAreNotQuantisedAreLeftToGgml) {
  const auto server = make_server(int8_options());
  for (const ggml_type type : {GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_F32}) {
    EXPECT_EQ(server->check(*Node({.type = type}).get()), LinearRefusal::kWeightType);
  }
}

TEST_F(Int8Linear, SaysWhatItIs) {
  const auto server = make_server(int8_options());
  EXPECT_EQ(server->description(),
            std::string("int8 (") + panels::int8_kernels().front()->instructions + ")");
  EXPECT_TRUE(server->rounds());
}

}  // namespace
}  // namespace tsp::ggml_adapter
