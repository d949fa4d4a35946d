// SPDX-License-Identifier: MIT
// Every table of kernels that this processor runs, through the engine: error against double
// precision, edges, and that a gated layer comes out of each as out of the others.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "adapters/ggml/linear_node.h"
#include "adapters/ggml/panels/panel_engine.h"
#include "tests/ggml/product_node.h"
#include "tests/support/tiles.h"

namespace tsp::ggml_adapter {
#ifdef __x86_64__
namespace panels {
extern const Kernels kAmxInt8Emulated, kAmxBf16Emulated;
}
#endif

namespace {

using Node = test::ProductNode;

// As in int8_linear_test.cc: two roundings to steps of 1/127 of the largest of 128 values.
constexpr double kInt8Error = 3.0 / 127 * 0.2887 * 1.4143;
// Two roundings to 8 bits, steps of 2^-8 of a value's power of two.
constexpr double kBf16Error = 0x1p-8 * 0.2887 * 1.4143 * 1.5;

double error_of(const panels::Kernels& kernels) {
  return kernels.arithmetic == std::string("bf16") ? kBf16Error : kInt8Error;
}

std::vector<const panels::Kernels*> all_kernels() {
  std::vector<const panels::Kernels*> all = panels::int8_kernels();
  const auto bf16 = panels::bf16_kernels();
  all.insert(all.end(), bf16.begin(), bf16.end());
#ifdef __x86_64__
  // What the emulated ones are built for.
  if (!bf16.empty()) all.insert(all.end(), {&panels::kAmxInt8Emulated, &panels::kAmxBf16Emulated});
#endif
  return all;
}

class PanelKernels : public testing::TestWithParam<const panels::Kernels*> {
 protected:
  PanelKernels() {
    LinearOptions options;
    options.type_traits = ggml_get_type_traits;
    auto engine = std::make_unique<PanelEngine>(*GetParam(), Threads{});
    server_ = LinearServer::create(std::move(engine), options);
  }

  void serve(Node& node) {
    ASSERT_EQ(server_->check(*node.get()), LinearRefusal::kNone);
    ASSERT_TRUE(server_->serve(*node.get()));
  }

  std::unique_ptr<LinearServer> server_;
};

TEST_P(PanelKernels, TakeAnyShape) {
  for (const int64_t k : {32, 96, 128, 160, 640}) {
    for (const int64_t n : {1, 15, 31, 33, 64}) {
      for (const int64_t m : {64, 65, 71}) {
        Node node({.m = m, .n = n, .k = k});
        serve(node);
        EXPECT_LT(node.error(), 1.5 * error_of(*GetParam())) << m << " " << n << " " << k;
      }
    }
  }
}

TEST_P(PanelKernels, AddPassesOverManyGroups) {
  Node node({.m = 67, .n = 40, .k = 16384});
  serve(node);
  EXPECT_LT(node.error(), error_of(*GetParam()));
}

TEST_P(PanelKernels, WriteNothingBesideTheResult) {
  Node node({.m = 64, .n = 40, .k = 128});
  ggml_tensor wide = *node.get();
  std::vector<float> out(65 * 40, 7);
  wide.data = out.data();
  ASSERT_EQ(server_->check(wide), LinearRefusal::kNone);
  ASSERT_TRUE(server_->serve(wide));
  EXPECT_TRUE(std::all_of(out.begin() + 64 * 40, out.end(), [](float x) { return x == 7; }));
}

TEST_P(PanelKernels, KeepWhatIsNoNumberInItsRow) {
  const test::ProductShape shape = {.m = 64, .n = 40, .k = 256};
  Node node(shape);
  auto* input = static_cast<float*>(node.input()->data);
  input[3 * shape.k + 100] = std::nanf("");
  input[20 * shape.k + 255] = -INFINITY;
  std::fill_n(input + 30 * shape.k, shape.k, 0.0f);
  std::fill_n(input + 31 * shape.k, shape.k, 1e-42f);
  serve(node);
  for (int64_t i = 0; i < shape.m * shape.n; ++i) {
    const int64_t row = i / shape.n;
    EXPECT_EQ(!std::isfinite(node.result()[i]), row == 3 || row == 20) << row;
    if (row == 30 || row == 31) {
      EXPECT_EQ(node.result()[i], 0) << row;
    }
  }
}

std::vector<float> product(const panels::Kernels& kernels, const test::ProductShape& shape) {
  LinearOptions options;
  options.type_traits = ggml_get_type_traits;
  const auto server =
      LinearServer::create(std::make_unique<PanelEngine>(kernels, Threads{}), options);
  Node node(shape);
  EXPECT_EQ(server->check(*node.get()), LinearRefusal::kNone);
  EXPECT_TRUE(server->serve(*node.get()));
  return {node.result(), node.result() + shape.m * shape.n};
}

// Whole tiles and panels, and such that are not; several passes over many groups.
TEST(PanelKernelsOnAmx, GiveTheBitsOfAvx512Vnni) {
  const auto tables = all_kernels();
  const auto find = [&](const std::string& name) {
    const auto at = std::find_if(tables.begin(), tables.end(), [&](const panels::Kernels* kernels) {
      return std::string(kernels->instructions).starts_with(name);
    });
    return at == tables.end() ? nullptr : *at;
  };
  const panels::Kernels *amx = find("AMX"), *vnni = find("AVX512-VNNI");
  if (amx == nullptr || vnni == nullptr) GTEST_SKIP() << "this processor has not both";
  for (const test::ProductShape& shape : {test::ProductShape{.m = 96, .n = 64, .k = 640},
                                          test::ProductShape{.m = 71, .n = 33, .k = 160},
                                          test::ProductShape{.m = 64, .n = 40, .k = 16384}}) {
    EXPECT_EQ(product(*amx, shape), product(*vnni, shape)) << shape.k;
  }
}

TEST(PanelKernelsOnAmx, LeaveTheTilesAsTheyWereConfigured) {
  std::vector<const panels::Kernels*> tables = all_kernels();
  std::erase_if(tables, [](const panels::Kernels* kernels) {
    const std::string name = kernels->instructions;
    return name != "AMX-INT8" && name != "AMX-BF16";
  });
  if (tables.empty()) GTEST_SKIP() << "no AMX on this processor";
  for (const panels::Kernels* kernels : tables) {
    const test::TileConfig configured = test::configure_tiles();
    product(*kernels, {.m = 64, .n = 40, .k = 160});
    const test::TileConfig after = test::tiles_as_configured();
    test::release_tiles();
    EXPECT_EQ(after, configured) << kernels->instructions;
    product(*kernels, {.m = 64, .n = 40, .k = 160});
    EXPECT_EQ(test::tiles_as_configured(), test::TileConfig{}) << kernels->instructions;
  }
}

/// A product by three rows of silu(g) * g, g a product of values up to `size`.
std::vector<float> gated(const panels::Kernels& kernels, float size) {
  PanelEngine engine(kernels, {});
  constexpr int64_t kRows = 7, kColumns = 128;
  Node weight({.m = 64, .n = kColumns, .k = 128}), down({.m = 64, .n = 3, .k = kColumns});
  const auto read = ggml_get_type_traits(GGML_TYPE_Q8_0)->to_float;
  const auto rows_of = [&](ggml_tensor* tensor) {
    return PackedRows{tensor->data,  tensor->nb[1], tensor->ne[1],
                      tensor->ne[0], tensor->type,  read};
  };
  std::vector<float> input(kRows * 128), out(kRows * 3);
  for (size_t i = 0; i < input.size(); ++i) input[i] = size * std::sin(static_cast<float>(i));
  std::vector<char> weights(engine.weight_bytes(kColumns, 128)), next(engine.weight_bytes(3, 128));
  std::vector<char> rows(engine.input_bytes(kRows, 128)), hidden(engine.input_bytes(kRows, 128));
  engine.read_weights(rows_of(weight.weight()), weights.data());
  engine.read_weights(rows_of(down.weight()), next.data());
  engine.read_inputs(input.data(), kRows, 128, rows.data());
  engine.run_gated({kRows, kColumns, 128, 0, kColumns}, rows.data(), weights.data(), weights.data(),
                   hidden.data());
  EXPECT_TRUE(engine.run({kRows, 3, kColumns, 3}, hidden.data(), next.data(), out.data()));
  return out;
}

TEST_P(PanelKernels, GateAsTheOthersDo) {
  for (const float size : {0.01f, 1.0f, 30.0f, 3000.0f}) {  // the last: exponentials out of range
    const std::vector<float> ours = gated(*GetParam(), size);
    for (const panels::Kernels* other : all_kernels()) {
      const std::vector<float> expected = gated(*other, size);
      double difference = 0, norm = 0;
      for (size_t i = 0; i < ours.size(); ++i) {
        ASSERT_TRUE(std::isfinite(ours[i])) << size;
        difference += std::pow(double{ours[i]} - expected[i], 2);
        norm += std::pow(double{expected[i]}, 2);
      }
      // A product of three that are off, of a square. Tables of one arithmetic round most values
      // alike.
      const bool same = GetParam()->arithmetic == std::string(other->arithmetic);
      const double bound = same ? 3 * error_of(*other) : 6 * kInt8Error;
      EXPECT_LT(std::sqrt(difference / norm), bound) << size << other->instructions;
    }
  }
}

// Run by no_panels_test on an emulated processor.
TEST(PanelProcessor, WithoutTheInstructionsIsRefusedByName) {
  if (!panels::int8_kernels().empty()) GTEST_SKIP() << "this one has them";
  LinearOptions options;
  options.kind = LinearKind::kInt8;
  options.type_traits = ggml_get_type_traits;
  std::string why;
  EXPECT_EQ(LinearServer::create(options, why), nullptr);
  EXPECT_EQ(why,
            "this processor has neither AVX512-VNNI nor AVX-VNNI (dot product of 8-bit integers)");
}

INSTANTIATE_TEST_SUITE_P(All, PanelKernels, testing::ValuesIn(all_kernels()),
                         [](const auto& kernels) {
                           std::string name = kernels.param->instructions;
                           std::erase(name, '-');
                           return name;
                         });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(PanelKernels);

}  // namespace
}  // namespace tsp::ggml_adapter
