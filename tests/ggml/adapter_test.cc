// SPDX-License-Identifier: MIT
// The adapter inside real llama.cpp, on tiny random models: what it serves equals ggml's own
// result, and what it must not serve it leaves alone, with the reason counted.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "adapters/ggml/attention_node.h"
#include "adapters/ggml/eval_callback.h"
#include "ggml.h"
#include "tests/ggml/engine.h"
#include "tests/ggml/tiny_model.h"
#include "tests/support/temporary_folder.h"

namespace tsp::ggml_adapter {
namespace {

using test::Engine;
using test::TinyModel;

class Model {
 public:
  explicit Model(const TinyModel& model) { test::write_tiny_model(model, path_); }
  std::string path() const { return path_; }

 private:
  const test::TemporaryFolder folder_;
  const std::filesystem::path path_ = folder_.path() / "model.gguf";
};

struct Context {
  Context() {
    tsp_context_options_t options;
    tsp_context_options_init(&options, sizeof options);
    options.num_threads = 2;
    EXPECT_EQ(tsp_context_create(&options, &ctx), TSP_OK) << tsp_last_error();
  }
  ~Context() { tsp_context_destroy(ctx); }
  tsp_context_t* ctx = nullptr;
};

/// Layer 1 keeps half of its tokens, however short the prompt.
Options sparse_options() {
  Options options;
  options.setting = Setting();
  options.setting.layers = LayerChoice::of({1});
  options.setting.op.keep = 0.5f;
  options.setting.op.min_tokens = 64;
  options.setting.min_keys = 0;
  options.setting.min_rows = 2;
  options.num_layers = 3;
  return options;
}

/// The adapter as our program runs it.
struct Adapter {
  explicit Adapter(Options options = {})
      : server(context.ctx, std::move(options)), callback(&server) {}
  test::NodeCallback hook() {
    return [this](ggml_tensor* node, bool ask) { return EvalCallback::call(node, ask, &callback); };
  }
  int64_t refused(Refusal refusal) const {
    int64_t count = server.no_layer().refused[static_cast<size_t>(refusal)];
    for (const LayerStats& layer : server.layers()) {
      count += layer.refused[static_cast<size_t>(refusal)];
    }
    return count;
  }
  int64_t served() const {
    int64_t count = server.no_layer().served;
    for (const LayerStats& layer : server.layers()) count += layer.served;
    return count;
  }

  Context context;
  AttentionServer server;
  EvalCallback callback;
};

TEST(Adapter, LogitsDifferFromStockNoMoreThanFlashAttentionDoes) {
  for (const auto& [heads, kv_heads, head_dim] :
       std::vector<std::array<int32_t, 3>>{{4, 2, 32}, {6, 1, 40}, {2, 2, 64}}) {
    const Model model({.heads = heads, .kv_heads = kv_heads, .head_dim = head_dim});
    const auto tokens = test::random_tokens(700, 3);
    const Engine::Options options{.ubatch = 256};
    const auto stock = Engine(model.path(), options, {}).decode(tokens);
    const auto without =
        Engine(model.path(), {.ubatch = 256, .flash_attention = LLAMA_FLASH_ATTN_TYPE_DISABLED}, {})
            .decode(tokens);
    Adapter adapter;
    const auto ours = Engine(model.path(), options, adapter.hook()).decode(tokens);
    EXPECT_EQ(adapter.served(), 3 * 3) << "three chunks of three layers";
    EXPECT_EQ(adapter.callback.error(), "");
    const double noise = test::relative_rms(without, stock);
    EXPECT_LE(test::relative_rms(ours, stock), noise);
    EXPECT_LT(noise, 0.01);
  }
}

TEST(Adapter, EachNodeEqualsGgml) {
  const Model model({.layers = 2, .heads = 8, .kv_heads = 2, .head_dim = 64});
  Context context;
  AttentionServer server(context.ctx, {});
  std::vector<double> errors;
  const auto compare = [&](ggml_tensor* node, bool ask) {
    if (server.check_shape(*node) != Refusal::kNone) return false;
    if (ask) return true;
    std::vector<float> ours(static_cast<size_t>(ggml_nelements(node)), NAN);
    ggml_tensor copy = *node;
    copy.data = ours.data();
    EXPECT_EQ(server.check(copy), Refusal::kNone);
    EXPECT_EQ(server.serve(copy), TSP_OK) << tsp_last_error();
    errors.push_back(
        test::relative_rms(ours.data(), static_cast<const float*>(node->data), ours.size()));
    return true;
  };
  Engine(model.path(), {.ubatch = 300}, compare).decode(test::random_tokens(1000, 5));
  ASSERT_EQ(errors.size(), 2u * 4);
  for (const double error : errors) EXPECT_LT(error, 1e-4);
}

TEST(Adapter, GraphsThatAreReusedAreServedAgain) {
  const Model model({});
  Adapter adapter;
  Engine engine(model.path(), {.ubatch = 128}, adapter.hook());
  const Engine::Options options{.ubatch = 128};
  Engine stock(model.path(), options, {});
  for (uint32_t turn = 0; turn < 4; ++turn) {  // equal shapes: llama.cpp keeps its graph
    const auto tokens = test::random_tokens(64, turn);
    EXPECT_LT(test::relative_rms(engine.decode(tokens), stock.decode(tokens)), 1e-3);
  }
  EXPECT_EQ(adapter.served(), 4 * 3);
}

TEST(Adapter, DecodingIsLeftToGgml) {
  const Model model({});
  Adapter adapter;
  Engine engine(model.path(), {}, adapter.hook());
  engine.decode(test::random_tokens(200, 1));
  engine.decode(test::random_tokens(1, 1));
  engine.decode(test::random_tokens(63, 1));
  engine.decode(test::random_tokens(64, 1));
  EXPECT_EQ(adapter.served(), 2 * 3);
  EXPECT_EQ(adapter.refused(Refusal::kShortChunk), 2 * 3);
}

TEST(Adapter, TooShortToGainIsExact) {
  const Model model({});
  const auto tokens = test::random_tokens(640, 1);
  const auto sparse_chunks = [&](int32_t min_keys, int32_t min_rows, int32_t ubatch) {
    Options options = sparse_options();
    options.setting.min_keys = min_keys;
    options.setting.min_rows = min_rows;
    Adapter adapter(options);
    Engine(model.path(), {.ubatch = ubatch}, adapter.hook()).decode(tokens);
    const auto& layers = adapter.server.layers();
    EXPECT_EQ(layers[0].few_keys + layers[0].few_rows, 0) << "no sparse layer";
    const LayerStats& layer = layers[1];
    EXPECT_EQ(layer.sparse + layer.few_keys + layer.few_rows + layer.kept_all, layer.served);
    return layer.sparse;
  };
  EXPECT_EQ(sparse_chunks(640, 2, 320), 1) << "320 keys, then 640";
  EXPECT_EQ(sparse_chunks(641, 2, 320), 0);
  EXPECT_EQ(sparse_chunks(0, 320, 320), 2);
  EXPECT_EQ(sparse_chunks(0, 321, 320), 0) << "fewer query rows";
}

TEST(Adapter, OnlySparseLayersLeaveTokensOut) {
  const Model model({});
  Adapter adapter(sparse_options());
  Engine(model.path(), {.ubatch = 1024}, adapter.hook()).decode(test::random_tokens(1000, 1));
  ASSERT_EQ(adapter.server.layers().size(), 3u);
  const auto& layers = adapter.server.layers();
  EXPECT_EQ(layers[0].kept, 1000);
  EXPECT_EQ(layers[1].kept, 500);
  EXPECT_EQ(layers[1].sparse, 1);
  EXPECT_EQ(layers[2].kept, 1000);
  EXPECT_EQ(layers[2].sparse, 0);
  EXPECT_EQ(layers[0].pairs_share(), 1);
  EXPECT_LT(layers[1].pairs_share(), 0.7) << "a quarter, and 320 keys of half the queries";
  EXPECT_GT(layers[1].pairs_share(), 0.3);
  EXPECT_EQ(why_never_sparse(layers[0], 0, 2), "") << "not named";
  EXPECT_EQ(why_never_sparse(layers[1], 0, 2), "");
}

TEST(Adapter, MiddleLayersAreSparseByDefault) {
  const Model model({.layers = 4});
  Options options = sparse_options();
  options.setting.layers = Setting().layers;
  options.num_layers = 4;
  Adapter adapter(options);
  Engine(model.path(), {.ubatch = 1024}, adapter.hook()).decode(test::random_tokens(1000, 1));
  std::vector<int64_t> sparse;
  for (const LayerStats& layer : adapter.server.layers()) sparse.push_back(layer.sparse);
  EXPECT_EQ(sparse, (std::vector<int64_t>{0, 1, 1, 0}));
}

TEST(Adapter, ANamedLayerWithASlidingWindowSaysWhyItNeverIsSparse) {
  const Model model({.arch = "gemma3", .layers = 4, .sliding_window = 128});
  Options options = sparse_options();
  options.setting.layers = LayerChoice::of({1, 2});
  Adapter adapter(options);
  Engine(model.path(), {.ubatch = 1024}, adapter.hook()).decode(test::random_tokens(1000, 1));
  const auto& layers = adapter.server.layers();
  EXPECT_EQ(layers[1].sparse, 1);
  EXPECT_EQ(layers[2].sparse, 0);
  EXPECT_NE(why_never_sparse(layers[2], 0, 2).find("sliding window"), std::string::npos);
}

TEST(Refusals, QuantisedCache) {
  const Model model({});
  Adapter adapter;
  const auto tokens = test::random_tokens(200, 1);
  const Engine::Options options{.cache_type = GGML_TYPE_Q8_0};
  const auto ours = Engine(model.path(), options, adapter.hook()).decode(tokens);
  EXPECT_EQ(adapter.served(), 0);
  EXPECT_EQ(adapter.refused(Refusal::kKvType), 3);
  EXPECT_EQ(ours, Engine(model.path(), options, {}).decode(tokens)) << "ggml ran it untouched";
}

TEST(Refusals, SlidingWindowLayersOnly) {
  const Model model({.arch = "gemma3", .layers = 4, .sliding_window = 128});
  Adapter adapter;
  const auto tokens = test::random_tokens(600, 1);
  const auto ours = Engine(model.path(), {}, adapter.hook()).decode(tokens);
  const auto stock = Engine(model.path(), {}, {}).decode(tokens);
  // Layers 0 and 2 slide. The first chunk is 512 tokens, the second 88.
  EXPECT_EQ(adapter.refused(Refusal::kMask), 2 * 2);
  EXPECT_EQ(adapter.served(), 2 * 2);
  EXPECT_LT(test::relative_rms(ours, stock), 1e-3);
}

TEST(Refusals, SoftCap) {
  const Model model({.arch = "gemma2", .layers = 2});
  Adapter adapter;
  Engine(model.path(), {}, adapter.hook()).decode(test::random_tokens(200, 1));
  EXPECT_EQ(adapter.served(), 0);
  EXPECT_EQ(adapter.refused(Refusal::kSoftCap), 2);
}

TEST(Sequences, InOneCache) {
  const Model model({});
  Adapter adapter;
  const std::vector sequences{test::random_tokens(150, 1), test::random_tokens(150, 2)};
  const Engine::Options options{.sequences = 2};
  const auto ours = Engine(model.path(), options, adapter.hook()).decode(sequences);
  EXPECT_EQ(adapter.served(), 3);
  EXPECT_LT(test::relative_rms(ours, Engine(model.path(), options, {}).decode(sequences)), 1e-3);
}

TEST(Sequences, WithACacheEach) {
  const Model model({});
  Adapter adapter;
  const std::vector sequences{test::random_tokens(150, 1), test::random_tokens(150, 2)};
  const Engine::Options options{.sequences = 2, .unified = false};
  const auto ours = Engine(model.path(), options, adapter.hook()).decode(sequences);
  EXPECT_EQ(adapter.served(), 3);
  EXPECT_LT(test::relative_rms(ours, Engine(model.path(), options, {}).decode(sequences)), 1e-3);
}

}  // namespace
}  // namespace tsp::ggml_adapter
