// SPDX-License-Identifier: MIT
// The adapter on a real model: Qwen2.5-Coder 0.5B, or the GGUF that TOKENSPARSE_MODEL names.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "adapters/ggml/eval_callback.h"
#include "adapters/ggml/linear_node.h"
#include "cli/llama/model.h"
#include "cli/llama/openmp_threads.h"
#include "ggml.h"
#include "tests/ggml/engine.h"

namespace tsp::ggml_adapter {
namespace {

using test::Engine;

std::string model_path() {
  if (const char* path = std::getenv("TOKENSPARSE_MODEL")) return path;
  std::string path;
  FILE* fetch = popen(TSP_SOURCE_DIR "/scripts/fetch-model", "r");
  for (int c; fetch != nullptr && (c = std::fgetc(fetch)) != EOF && c != '\n';) {
    path += static_cast<char>(c);
  }
  EXPECT_TRUE(fetch != nullptr && pclose(fetch) == 0) << "scripts/fetch-model failed";
  return path;
}

/// About 2,000 tokens of this project's headers, with a sentence in the middle that is asked for.
std::vector<llama_token> needle_prompt(const std::string& path) {
  std::string text;
  for (const char* header : {"types.h", "attend.h", "select.h"}) {
    text += cli::read_text(std::string(TSP_SOURCE_DIR "/include/tokensparse/") + header);
  }
  text.resize(std::min<size_t>(text.size(), 8200));
  text.insert(text.find('\n', text.size() / 2),
              "\nOne of the special magic numbers for long-context is: 7418305.\n");
  const cli::Model model(path, false);
  return model.prompt_tokens(text,
                             "What is the special magic number for long-context mentioned in the "
                             "text above? Answer with the number only.");
}

std::string greedy_answer(Engine& engine, std::vector<float> logits) {
  std::string answer;
  logits.erase(logits.begin(), logits.end() - llama_vocab_n_tokens(engine.vocab()));
  for (int i = 0; i < 16; ++i) {
    const auto token =
        static_cast<llama_token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    if (llama_vocab_is_eog(engine.vocab(), token)) break;
    char piece[64];
    const int32_t length =
        llama_token_to_piece(engine.vocab(), token, piece, sizeof piece, 0, false);
    answer.append(piece, static_cast<size_t>(std::max(length, 0)));
    logits = engine.decode(std::vector<llama_token>{token});
  }
  return answer;
}

// A change in the last bit of attention turns some roundings of the next layer's 8-bit activations,
// and ends as a few per cent of the logits: chance, so it takes many rows to compare two of them.
constexpr int32_t kOutputs = 128;

// One test: each pass over the prompt takes seconds.
TEST(RealModel, ExactAttentionEqualsGgmlAndFindsTheNeedle) {
  const std::string path = model_path();
  const std::vector<llama_token> prompt = needle_prompt(path);
  EXPECT_GT(prompt.size(), 1800u);
  const tokensparse::Context ctx = cli::open_on_openmp("", 2);
  Options options;

  // Each node that ggml computed, computed again by us from the same q, k and v.
  AttentionServer beside(ctx.get(), options);
  double worst = 0;
  int64_t nodes = 0;
  const auto compare = [&](ggml_tensor* node, bool ask) {
    if (beside.check_shape(*node) != Refusal::kNone) return false;
    if (ask) return true;
    std::vector<float> ours(static_cast<size_t>(ggml_nelements(node)));
    ggml_tensor copy = *node;
    copy.data = ours.data();
    EXPECT_EQ(beside.check(copy), Refusal::kNone);
    EXPECT_EQ(beside.serve(copy), TSP_OK) << tsp_last_error();
    worst = std::max(
        worst, test::relative_rms(ours.data(), static_cast<const float*>(node->data), ours.size()));
    ++nodes;
    return true;
  };
  const Engine::Options engine_options{.context = 4096, .ubatch = 2048};
  std::vector<float> stock;
  int32_t layers = 0;
  {
    Engine engine(path, engine_options, compare);
    stock = engine.decode(prompt, kOutputs);
    layers = llama_model_n_layer(engine.model());
  }
  EXPECT_EQ(nodes, layers * static_cast<int64_t>((prompt.size() + 2047) / 2048));
  EXPECT_LT(worst, 1e-4) << "relative RMS of a node";
  RecordProperty("worst_node", std::to_string(worst));

  Engine::Options without = engine_options;
  without.flash_attention = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  const double noise =
      test::relative_rms(Engine(path, without, {}).decode(prompt, kOutputs), stock);

  AttentionServer server(ctx.get(), options);
  EvalCallback callback(&server);
  Engine engine(path, engine_options, [&](ggml_tensor* node, bool ask) {
    return EvalCallback::call(node, ask, &callback);
  });
  const std::vector<float> ours = engine.decode(prompt, kOutputs);
  EXPECT_EQ(callback.error(), "");
  const double difference = test::relative_rms(ours, stock);
  std::printf("worst node %.2e; logits: ours %.4f, flash attention off %.4f\n", worst, difference,
              noise);
  EXPECT_LE(difference, 1.1 * noise);
  EXPECT_EQ(greedy_answer(engine, ours), "7418305");
}

// Weights that ggml does not repack, so that the products are ours in all layers.
TEST(RealModel, Bf16StaysWithinTheNoiseAndFindsTheNeedle) {
  std::string why;
  LinearOptions linear_options;
  linear_options.threads = 2;
  linear_options.type_traits = ggml_get_type_traits;
  const auto linear = LinearServer::create(linear_options, why);
  if (linear == nullptr) GTEST_SKIP() << why;
  const std::string path = model_path();
  const std::vector<llama_token> prompt = needle_prompt(path);
  Engine::Options stock_options{.context = 4096, .ubatch = 2048, .repack = false};
  const std::vector<float> stock = Engine(path, stock_options, {}).decode(prompt, kOutputs);
  Engine::Options without = stock_options;
  without.flash_attention = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  const double noise =
      test::relative_rms(Engine(path, without, {}).decode(prompt, kOutputs), stock);

  const tokensparse::Context ctx = cli::open_on_openmp("", 2);
  for (const tsp_precision_t precision : {TSP_PRECISION_F32, TSP_PRECISION_BF16}) {
    if (precision == TSP_PRECISION_BF16 && !has_bf16(ctx.get())) continue;
    Options options;
    options.setting.op.precision = precision;
    AttentionServer server(ctx.get(), options);
    EvalCallback callback(&server, linear.get());
    linear->reset_stats();
    Engine engine(path, stock_options, [&](ggml_tensor* node, bool ask) {
      return EvalCallback::call(node, ask, &callback);
    });
    const std::vector<float> ours = engine.decode(prompt, kOutputs);
    EXPECT_EQ(callback.error(), "");
    const double difference = test::relative_rms(ours, stock);
    std::printf("logits: %s linear layers, %s attention %.4f; flash attention off %.4f\n",
                linear->rounds() ? "bf16" : "f32", precision == TSP_PRECISION_BF16 ? "bf16" : "f32",
                difference, noise);
    EXPECT_LE(difference, 1.1 * noise);
    EXPECT_GE(linear->stats().served, 7 * (llama_model_n_layer(engine.model()) - 1));
    EXPECT_EQ(greedy_answer(engine, ours), "7418305");
  }
}

// The distance from linear layers in f32, where nothing is rounded: a rounding anywhere turns some
// roundings of ggml's 8-bit activations, so the distance from stock says little.
TEST(RealModel, Int8IsAsCloseToF32AsStockAndFindsTheNeedle) {
  const std::string path = model_path();
  const std::vector<llama_token> prompt = needle_prompt(path);
  const Engine::Options engine_options{.context = 4096, .ubatch = 2048, .repack = false};
  const tokensparse::Context ctx = cli::open_on_openmp("", 2);
  std::string answer;
  const auto logits = [&](const LinearOptions& linear_options) -> std::vector<float> {
    Options options;
    AttentionServer server(ctx.get(), options);
    std::string why;
    const auto linear = LinearServer::create(linear_options, why);
    if (linear == nullptr) return {};
    EvalCallback callback(&server, linear.get());
    Engine engine(path, engine_options, [&](ggml_tensor* node, bool ask) {
      return EvalCallback::call(node, ask, &callback);
    });
    const std::vector<float> ours = engine.decode(prompt, kOutputs);
    EXPECT_EQ(callback.error(), "");
    EXPECT_GE(linear->stats().served, 7 * (llama_model_n_layer(engine.model()) - 1));
    answer = greedy_answer(engine, ours);
    return ours;
  };
  LinearOptions options;
  options.threads = 2;
  options.parallel = cli::run_on_openmp;
  options.type_traits = ggml_get_type_traits;
  options.precision = LinearPrecision::kF32;
  const std::vector<float> exact = logits(options);
  if (exact.empty()) GTEST_SKIP() << "no oneDNN for products in f32";
  options.kind = LinearKind::kInt8;
  const std::vector<float> ours = logits(options);
  if (ours.empty()) GTEST_SKIP() << "no 8-bit products on this processor";
  EXPECT_EQ(answer, "7418305");
  const std::vector<float> stock = Engine(path, engine_options, {}).decode(prompt, kOutputs);
  const double difference = test::relative_rms(ours, exact);
  const double stock_difference = test::relative_rms(stock, exact);
  std::printf("logits from linear layers in f32: int8 %.4f, stock %.4f\n", difference,
              stock_difference);
  EXPECT_LE(difference, 1.1 * stock_difference);
}

}  // namespace
}  // namespace tsp::ggml_adapter
