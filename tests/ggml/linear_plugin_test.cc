// SPDX-License-Identifier: MIT
// Linear layers in the plugin: TOKENSPARSE_LINEAR=onednn, int8 and bf16.
#include <gtest/gtest.h>
#include <omp.h>

#include <string>
#include <vector>

#include "adapters/ggml/panels/kernels.h"
#include "tests/ggml/engine.h"
#include "tests/ggml/plugin_host.h"
#include "tests/ggml/tiny_model.h"

namespace tsp::test {
namespace {

const TinyModel kQuantised = {.embd = 256, .heads = 8, .ff = 512, .weights = GGML_TYPE_Q4_K};
// A chunk's products: seven a layer, less gate, up and down of the last layer, which sees output
// rows only.
constexpr int64_t kProducts = 3 * 7 - 3;

TEST(LinearPlugin, ServesPromptsAndLeavesDecodingToTheHost) {
  const ModelFile model(kQuantised);
  const auto tokens = random_tokens(500, 1);
  const auto stock = Engine(model.path(), {.ubatch = 256, .repack = false}, {}).decode(tokens);
  std::vector<const char*> kinds = {"onednn"};
  if (!ggml_adapter::panels::int8_kernels().empty()) kinds.insert(kinds.end(), {"int8", "auto"});
  if (!ggml_adapter::panels::bf16_kernels().empty()) kinds.push_back("bf16");
  for (const char* linear : kinds) {
    const LoadedPlugin plugin(LoadedPlugin::Variables{{"TOKENSPARSE_LINEAR", linear}});
    Engine engine(model.path(), {.ubatch = 256, .repack = false}, {});
    // What rounding activations differently than ggml does comes to on random weights.
    EXPECT_LT(relative_rms(engine.decode(tokens), stock), 0.05) << linear;
    EXPECT_EQ(plugin.linear(), 2 * kProducts) << plugin.summary();
    EXPECT_EQ(plugin.served(), 2 * 3) << plugin.summary();
    engine.decode(random_tokens(1, 2));
    EXPECT_EQ(plugin.linear(), 2 * kProducts) << plugin.summary();
  }
}

TEST(LinearPlugin, ComputesTheSameOnFewerThreadsThanTheHostAskedFor) {
  const ModelFile model(kQuantised);
  const auto tokens = random_tokens(500, 1);
  const int levels = omp_get_max_active_levels();
  const auto logits = [&](int max_active_levels) {
    const LoadedPlugin plugin(LoadedPlugin::Variables{{"TOKENSPARSE_LINEAR", "onednn"}});
    Engine engine(model.path(), {.ubatch = 256, .repack = false}, {});
    omp_set_max_active_levels(max_active_levels);  // 0: teams of one
    auto result = engine.decode(tokens);
    omp_set_max_active_levels(levels);
    EXPECT_EQ(plugin.linear(), 2 * kProducts) << plugin.summary();
    return result;
  };
  EXPECT_LT(relative_rms(logits(0), logits(levels)), 1e-3);
}

TEST(LinearPlugin, RoundsForAttentionWhereItDoesForLinearLayers) {
  const ModelFile model(kQuantised);
  const auto tokens = random_tokens(300, 1);
  const auto logits = [&](const char* linear, const char* precision) {
    const LoadedPlugin plugin(LoadedPlugin::Variables{{"TOKENSPARSE_LINEAR", linear},
                                                      {"TOKENSPARSE_PRECISION", precision}});
    return Engine(model.path(), {.repack = false}, {}).decode(tokens);
  };
  const auto f32 = logits("onednn", "f32"), bf16 = logits("onednn", "bf16");
  if (f32 == bf16) GTEST_SKIP() << "this processor has no bf16";
  EXPECT_EQ(logits("onednn", "auto"), bf16);
  EXPECT_EQ(logits("ggml", "auto"), logits("ggml", "f32"));
}

TEST(LinearPlugin, KeepsAttentionExactWhereItLeavesTheWeightsToTheHost) {
  if (ggml_adapter::panels::int8_kernels().empty()) GTEST_SKIP() << "no products of 8-bit integers";
  TinyModel shape = kQuantised;
  shape.weights = GGML_TYPE_F16;
  const ModelFile model(shape);
  const auto tokens = random_tokens(300, 1);
  const auto logits = [&](const char* precision) {
    const LoadedPlugin plugin(LoadedPlugin::Variables{{"TOKENSPARSE_LINEAR", "int8"},
                                                      {"TOKENSPARSE_PRECISION", precision}});
    auto result = Engine(model.path(), {.repack = false}, {}).decode(tokens);
    EXPECT_EQ(plugin.linear(), 0) << plugin.summary();
    return result;
  };
  EXPECT_EQ(logits("auto"), logits("f32"));
}

TEST(LinearPlugin, IsOffUnlessAskedFor) {
  const ModelFile model(kQuantised);
  const LoadedPlugin plugin;
  Engine(model.path(), {.repack = false}, {}).decode(random_tokens(100, 1));
  EXPECT_EQ(plugin.linear(), 0) << plugin.summary();
  EXPECT_EQ(plugin.served(), 3) << plugin.summary();
}

TEST(LinearPlugin, LeavesRepackedWeightsToTheHost) {
  const ModelFile model(kQuantised);
  const auto tokens = random_tokens(100, 1);
  const LoadedPlugin plugin(LoadedPlugin::Variables{{"TOKENSPARSE_LINEAR", "onednn"}});
  Engine(model.path(), {}, {}).decode(tokens);
  EXPECT_LE(plugin.linear(), kProducts) << plugin.summary();
  EXPECT_EQ(plugin.served(), 3) << plugin.summary();
}

}  // namespace
}  // namespace tsp::test
