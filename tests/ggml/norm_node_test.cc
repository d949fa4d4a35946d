// SPDX-License-Identifier: MIT
// RMS norms beside linear layers, on nodes made with ggml's own constructors: when they are served,
// and that they are what ggml computes.
#include "adapters/ggml/norm_node.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "adapters/ggml/linear_node.h"
#include "adapters/ggml/panels/panel_engine.h"
#include "ggml-cpu.h"
#include "tests/ggml/run_on_threads.h"

namespace tsp::ggml_adapter {
namespace {

using test::run_on_threads;

std::vector<const panels::Kernels*> all_kernels() {
  std::vector<const panels::Kernels*> all = panels::int8_kernels();
  for (const panels::Kernels* kernels : panels::bf16_kernels()) all.push_back(kernels);
  return all;
}

/// factors * norm(x), the product in the norm's place as ggml's allocator puts it.
class Norm {
 public:
  Norm(int64_t size, int64_t rows, bool in_place = true) {
    ctx_.reset(ggml_init({.mem_size = 32u << 20, .mem_buffer = nullptr, .no_alloc = false}));
    input = ggml_new_tensor_2d(ctx_.get(), GGML_TYPE_F32, size, rows);
    factors = ggml_new_tensor_1d(ctx_.get(), GGML_TYPE_F32, size);
    for (int64_t i = 0; i < size * rows; ++i) {
      values(input)[i] = std::sin(static_cast<float>(i)) * static_cast<float>(1 + i / size);
    }
    for (int64_t i = 0; i < size; ++i) values(factors)[i] = 1 + 0.01f * static_cast<float>(i);
    norm = ggml_rms_norm(ctx_.get(), input, 1e-5f);
    product = ggml_mul(ctx_.get(), norm, factors);
    if (in_place) product->data = norm->data;
  }

  static float* values(ggml_tensor* tensor) { return static_cast<float*>(tensor->data); }
  std::vector<float> result(ggml_tensor* tensor) {
    return {values(tensor), values(tensor) + ggml_nelements(tensor)};
  }
  void run_ggml(const std::vector<ggml_tensor*>& nodes) {
    ggml_cgraph* graph = ggml_new_graph_custom(ctx_.get(), 4, false);
    for (ggml_tensor* node : nodes) {
      ggml_graph_add_node(graph, node);
      node->flags |= GGML_TENSOR_FLAG_COMPUTE;
    }
    ASSERT_EQ(ggml_graph_compute_with_ctx(ctx_.get(), graph, 1), GGML_STATUS_SUCCESS);
  }

  ggml_tensor *input, *factors, *norm, *product;

 private:
  struct Free {
    void operator()(ggml_context* ctx) const { ggml_free(ctx); }
  };
  std::unique_ptr<ggml_context, Free> ctx_;
};

class NormNode : public testing::TestWithParam<const panels::Kernels*> {
 protected:
  NormNode() {
    LinearOptions options;
    options.threads = 2;
    options.parallel = run_on_threads;
    options.share_inputs = true;
    options.type_traits = ggml_get_type_traits;
    server_ = LinearServer::create(std::make_unique<PanelEngine>(*GetParam(), Threads{}), options);
    server_->begin_graph();
  }
  /// Whether the server takes the node, which it then serves.
  bool serve(ggml_tensor* node) {
    EXPECT_TRUE(server_->saw(*node));
    return server_->check(*node) == LinearRefusal::kNone && server_->serve(*node);
  }
  static void expect_near(const std::vector<float>& ours, const std::vector<float>& expected) {
    for (size_t i = 0; i < ours.size(); ++i) {
      ASSERT_NEAR(ours[i], expected[i], 4e-7f * std::fabs(expected[i]) + 1e-30f) << i;
    }
  }

  std::unique_ptr<LinearServer> server_;
};

TEST_P(NormNode, IsComputedWithItsFactors) {
  for (const int64_t size : {1, 8, 33, 896}) {
    for (const int64_t rows : {64, 77}) {
      Norm stock(size, rows), ours(size, rows);
      stock.run_ggml({stock.norm, stock.product});
      EXPECT_TRUE(serve(ours.norm));
      EXPECT_TRUE(serve(ours.product));
      EXPECT_TRUE(server_->end_graph());
      expect_near(ours.result(ours.product), stock.result(stock.product));
    }
  }
}

TEST_P(NormNode, MayTakeThePlaceOfItsInput) {
  Norm stock(128, 70), ours(128, 70);
  stock.run_ggml({stock.norm, stock.product});
  ours.norm->data = ours.product->data = ours.input->data;
  EXPECT_TRUE(serve(ours.norm) && serve(ours.product));
  expect_near(ours.result(ours.product), stock.result(stock.product));
}

TEST_P(NormNode, IsComputedAloneWhereSomethingElseMayReadIt) {
  Norm stock(128, 70, false), ours(128, 70, false);
  stock.run_ggml({stock.norm});
  EXPECT_TRUE(serve(ours.norm));
  EXPECT_FALSE(serve(ours.product)) << "is written elsewhere";
  expect_near(ours.result(ours.norm), stock.result(stock.norm));
}

TEST_P(NormNode, IsGgmlsWithFewRowsAsAResultAndUnasked) {
  Norm few(128, 8), output(128, 70), unasked(128, 70);
  output.norm->flags |= GGML_TENSOR_FLAG_OUTPUT;
  EXPECT_FALSE(serve(few.norm) || serve(output.norm));
  LinearOptions options;
  options.type_traits = ggml_get_type_traits;
  const auto server =
      LinearServer::create(std::make_unique<PanelEngine>(*GetParam(), Threads{}), options);
  EXPECT_TRUE(server->saw(*unasked.norm));
  EXPECT_NE(server->check(*unasked.norm), LinearRefusal::kNone);
}

TEST_P(NormNode, SaysWhereAGraphEndedBeforeItWasComputed) {
  Norm norm(128, 70);
  EXPECT_TRUE(serve(norm.norm));
  EXPECT_FALSE(server_->end_graph());
  server_->begin_graph();
  EXPECT_TRUE(server_->end_graph());
}

TEST_P(NormNode, KeepsWhatIsNoNumberInItsRow) {
  Norm norm(128, 70);
  Norm::values(norm.input)[3 * 128 + 5] = std::nanf("");
  EXPECT_TRUE(serve(norm.norm) && serve(norm.product));
  const std::vector<float> result = norm.result(norm.product);
  for (size_t i = 0; i < result.size(); ++i) EXPECT_EQ(std::isnan(result[i]), i / 128 == 3) << i;
}

INSTANTIATE_TEST_SUITE_P(All, NormNode, testing::ValuesIn(all_kernels()), [](const auto& kernels) {
  std::string name = kernels.param->instructions;
  std::erase(name, '-');
  return name;
});
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(NormNode);

}  // namespace
}  // namespace tsp::ggml_adapter
