// SPDX-License-Identifier: MIT
// The plugin inside llama.cpp, on tiny random models, through what a batch can look like. Each node
// that it serves is compared with ggml's own kernel on the same inputs, and the logits with those
// of a run without it.
#include <gtest/gtest.h>

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "adapters/ggml/setting.h"
#include "ggml-backend.h"
#include "tests/ggml/plugin_host.h"

namespace tsp::test {
namespace {

using Tokens = std::vector<llama_token>;
using Sequences = std::vector<Tokens>;
using Variables = LoadedPlugin::Variables;

constexpr double kSameNode = 1e-3;    // ggml adds up in f16; ours is f32
constexpr double kSameLogits = 3e-3;  // what that becomes after three layers
constexpr const char* kNothingLeft = "none of prefill size";

/// What `use` returns with the plugin and without: logits.
template <typename Use>
void expect_same_logits(const std::string& model, const Engine::Options& options, Use&& use) {
  std::vector<float> stock;
  {
    // Contexts find the plugin in ggml's registry; this one must not.
    ggml_backend_reg_t plugin = ggml_backend_reg_by_name("tokensparse");
    ASSERT_NE(plugin, nullptr);
    ggml_backend_unload(plugin);
    Engine engine(model, options, {});
    stock = use(engine);
    ggml_backend_register(plugin);
  }
  Engine engine(model, options, {});
  const std::vector<float> ours = use(engine);
  EXPECT_LT(relative_rms(ours, stock), kSameLogits);
}

TEST(Plugin, ServesAPromptInChunks) {
  const ModelFile model({.heads = 6, .kv_heads = 2, .head_dim = 64});
  const LoadedPlugin plugin;
  expect_same_logits(model.path(), {.ubatch = 256},
                     [](Engine& engine) { return engine.decode(random_tokens(700, 1)); });
  EXPECT_EQ(plugin.served(), 3 * 3) << plugin.summary();
  EXPECT_LT(plugin.largest_difference(), kSameNode);
  EXPECT_EQ(plugin.left_to_ggml(), kNothingLeft);
}

TEST(Plugin, LeavesDecodingAndSpeculativeChunksToTheHost) {
  const ModelFile model({});
  const LoadedPlugin plugin;
  Engine engine(model.path(), {}, {});
  engine.decode(random_tokens(200, 1));
  for (const int32_t count : {1, 8, 16, 63, 1}) engine.decode(random_tokens(count, 2));
  EXPECT_EQ(plugin.served(), 3) << plugin.summary();
  engine.decode(random_tokens(64, 3));
  EXPECT_EQ(plugin.served(), 6) << plugin.summary();
}

TEST(Plugin, SequencesThatShareACache) {
  const ModelFile model({});
  const LoadedPlugin plugin;
  const auto use = [](Engine& engine) {
    engine.decode(Sequences{random_tokens(150, 1), random_tokens(90, 2), random_tokens(200, 3)});
    return engine.decode(
        Sequences{random_tokens(1, 4), random_tokens(100, 5), random_tokens(70, 6)});
  };
  expect_same_logits(model.path(), {.sequences = 3}, use);
  EXPECT_EQ(plugin.served(), 2 * 3) << plugin.summary();
  EXPECT_LT(plugin.largest_difference(), kSameNode);
  EXPECT_EQ(plugin.left_to_ggml(), kNothingLeft);
}

TEST(Plugin, SequencesWithACacheEach) {
  const ModelFile model({});
  const LoadedPlugin plugin;
  const auto use = [](Engine& engine) {
    return engine.decode(Sequences{random_tokens(150, 1), random_tokens(150, 2)});
  };
  expect_same_logits(model.path(), {.sequences = 2, .unified = false}, use);
  EXPECT_GT(plugin.served(), 0) << plugin.summary();
  EXPECT_LT(plugin.largest_difference(), kSameNode);
}

TEST(Plugin, AReusedPrefix) {
  const ModelFile model({});
  const LoadedPlugin plugin;
  const auto use = [](Engine& engine) {
    engine.decode(random_tokens(300, 1));
    llama_memory_seq_rm(llama_get_memory(engine.context()), 0, 200, -1);
    engine.position(0) = 200;
    return engine.decode(random_tokens(150, 2));
  };
  expect_same_logits(model.path(), {}, use);
  EXPECT_EQ(plugin.served(), 2 * 3) << plugin.summary();
  EXPECT_LT(plugin.largest_difference(), kSameNode);
}

TEST(Plugin, ACacheWithHoles) {
  const ModelFile model({});
  const LoadedPlugin plugin;
  const auto use = [](Engine& engine) {
    engine.decode(random_tokens(400, 1));
    llama_memory_seq_rm(llama_get_memory(engine.context()), 0, 50, 130);
    llama_memory_seq_rm(llama_get_memory(engine.context()), 0, 200, 210);
    engine.decode(random_tokens(70, 2));
    return engine.decode(random_tokens(100, 3));
  };
  expect_same_logits(model.path(), {}, use);
  EXPECT_EQ(plugin.served(), 3 * 3) << plugin.summary();
  EXPECT_LT(plugin.largest_difference(), kSameNode);
  EXPECT_EQ(plugin.left_to_ggml(), kNothingLeft);
}

TEST(Plugin, AShiftedContext) {
  const ModelFile model({});
  const LoadedPlugin plugin;
  const auto use = [](Engine& engine) {
    engine.decode(random_tokens(400, 1));
    llama_memory_t memory = llama_get_memory(engine.context());
    llama_memory_seq_rm(memory, 0, 10, 110);
    llama_memory_seq_add(memory, 0, 110, -1, -100);
    engine.position(0) = 300;
    return engine.decode(random_tokens(128, 2));
  };
  expect_same_logits(model.path(), {}, use);
  EXPECT_EQ(plugin.served(), 2 * 3) << plugin.summary();
  EXPECT_LT(plugin.largest_difference(), kSameNode);
}

TEST(Plugin, LayersWithASlidingWindowRunInGgml) {
  const ModelFile model({.arch = "gemma3", .layers = 4, .sliding_window = 128});
  const LoadedPlugin plugin;
  expect_same_logits(model.path(), {},
                     [](Engine& engine) { return engine.decode(random_tokens(600, 1)); });
  EXPECT_EQ(plugin.served(), 2 * 2) << plugin.summary();  // two chunks of two layers
  EXPECT_NE(plugin.left_to_ggml().find("4 for a mask of another kind"), std::string::npos)
      << plugin.summary();
  EXPECT_LT(plugin.largest_difference(), kSameNode);
}

TEST(Plugin, EmbeddingsWithoutACausalMaskRunInGgml) {
  const ModelFile model({});
  const LoadedPlugin plugin;
  const auto use = [](Engine& engine) {
    llama_set_causal_attn(engine.context(), false);
    return engine.decode(random_tokens(200, 1));
  };
  expect_same_logits(model.path(), {.embeddings = true}, use);
  EXPECT_EQ(plugin.served(), 0) << plugin.summary();
  EXPECT_NE(plugin.left_to_ggml().find("3 for a mask of another kind"), std::string::npos)
      << plugin.summary();
}

TEST(Plugin, ASoftCapIsNotTaken) {
  const ModelFile model({.arch = "gemma2", .layers = 2});
  const LoadedPlugin plugin;
  expect_same_logits(model.path(), {},
                     [](Engine& engine) { return engine.decode(random_tokens(200, 1)); });
  EXPECT_EQ(plugin.served(), 0) << plugin.summary();
}

TEST(Plugin, QuantisedCaches) {
  const ModelFile model({});
  struct Types {
    ggml_type k, v;
    double tolerance;  // ggml quantises q as well before it multiplies
  };
  for (const Types& types :
       {Types{GGML_TYPE_Q8_0, GGML_TYPE_Q8_0, 2e-2}, Types{GGML_TYPE_Q4_0, GGML_TYPE_Q4_0, 2e-2},
        Types{GGML_TYPE_Q8_0, GGML_TYPE_F16, 2e-2}, Types{GGML_TYPE_BF16, GGML_TYPE_BF16, 2e-2}}) {
    const LoadedPlugin plugin;
    Engine engine(model.path(), {.cache_type = types.k, .value_cache_type = types.v}, {});
    engine.decode(random_tokens(300, 1));
    EXPECT_EQ(plugin.served(), 3) << plugin.summary();
    EXPECT_LT(plugin.largest_difference(), types.tolerance) << ggml_type_name(types.k);
  }
}

TEST(Plugin, FlashAttentionAutoStaysOn) {
  const ModelFile model({});
  for (const int32_t sequences : {1, 4, 64, 100}) {
    const LoadedPlugin plugin;
    Engine engine(model.path(),
                  {.sequences = sequences, .flash_attention = LLAMA_FLASH_ATTN_TYPE_AUTO}, {});
    engine.decode(random_tokens(200, 1));
    EXPECT_EQ(plugin.served(), 3) << sequences << " sequences: " << plugin.summary();
    EXPECT_LT(plugin.largest_difference(), kSameNode);
  }
}

TEST(Plugin, SparseLayersLeaveTokensOut) {
  const ModelFile model({});
  const LoadedPlugin plugin(Variables{{"TOKENSPARSE_KEEP", "0.5"},
                                      {"TOKENSPARSE_MIN_KEYS", "0"},
                                      {"TOKENSPARSE_MIN_ROWS", "64"},
                                      {"TOKENSPARSE_MIN_TOKENS", "64"},
                                      {"TOKENSPARSE_SHARE", "kv_group"},
                                      {"TOKENSPARSE_SPARSE_LAYERS", "1"}});
  Engine engine(model.path(), {.ubatch = 1024}, {});
  const auto logits = engine.decode(random_tokens(1000, 1));
  for (const float logit : logits) ASSERT_TRUE(std::isfinite(logit));
  EXPECT_EQ(plugin.served(), 3);
  EXPECT_EQ(plugin.sparse(), 1) << plugin.summary();
  EXPECT_GT(plugin.largest_difference(), 0.05) << "half the tokens are gone";
}

TEST(Plugin, SaysWhatWasTooShortForSparsity) {
  const ModelFile model({});
  const LoadedPlugin plugin(
      Variables{{"TOKENSPARSE_KEEP", "0.5"}, {"TOKENSPARSE_SPARSE_LAYERS", "1"}});
  Engine(model.path(), {.ubatch = 1024}, {}).decode(random_tokens(1000, 1));
  EXPECT_EQ(plugin.served(), 3);
  EXPECT_EQ(plugin.sparse(), 0) << plugin.summary();
  EXPECT_NE(plugin.summary().find("1 of sparse layers exact: fewer than 4096 keys (min_keys)"),
            std::string::npos)
      << plugin.summary();
}

TEST(Plugin, AskedToBeSparseItIsTheBuiltInSettingInTheMiddleLayers) {
  const ModelFile model({.layers = 4});
  const LoadedPlugin plugin(Variables{{"TOKENSPARSE_COVERAGE", "0.5"},
                                      {"TOKENSPARSE_MIN_KEYS", "0"},
                                      {"TOKENSPARSE_MIN_ROWS", "64"},
                                      {"TOKENSPARSE_MIN_TOKENS", "16"}});
  Engine(model.path(), {.ubatch = 1024}, {}).decode(random_tokens(1000, 1));
  EXPECT_EQ(plugin.served(), 4);
  EXPECT_EQ(plugin.sparse(), 2) << plugin.summary();
  EXPECT_NE(plugin.summary().find("% of the tokens of the sparse layers kept ("), std::string::npos)
      << plugin.summary();
}

TEST(Plugin, AttendsByBlocksAlone) {
  const ModelFile model({.layers = 4});
  const LoadedPlugin plugin(Variables{{"TOKENSPARSE_COVERAGE", "0"},
                                      {"TOKENSPARSE_BLOCKS", "pooled,block=16,threshold=0.2"},
                                      {"TOKENSPARSE_MIN_KEYS", "0"},
                                      {"TOKENSPARSE_MIN_ROWS", "64"}});
  Engine(model.path(), {.ubatch = 1024}, {}).decode(random_tokens(1000, 1));
  EXPECT_EQ(plugin.served(), 4);
  EXPECT_EQ(plugin.sparse(), 2) << plugin.summary();
  EXPECT_NE(plugin.summary().find("100.0 % of the tokens of the sparse layers kept ("),
            std::string::npos)
      << plugin.summary();
}

TEST(Plugin, LongCallsHaveACoverageOfTheirOwn) {
  const ModelFile model({});
  for (const auto& [keys, differs] : {std::pair{"1001", true}, std::pair{"1000", false}}) {
    const LoadedPlugin plugin(Variables{{"TOKENSPARSE_COVERAGE", "0.5"},
                                        {"TOKENSPARSE_LONG_KEYS", keys},
                                        {"TOKENSPARSE_LONG_COVERAGE", "0"},
                                        {"TOKENSPARSE_MIN_KEYS", "0"},
                                        {"TOKENSPARSE_MIN_ROWS", "64"},
                                        {"TOKENSPARSE_MIN_TOKENS", "16"}});
    Engine(model.path(), {.ubatch = 1024}, {}).decode(random_tokens(1000, 1));
    EXPECT_EQ(plugin.largest_difference() > 0.01, differs) << plugin.summary();
  }
}

TEST(Plugin, AModelAndItsDraftHaveTheirOwnMiddle) {
  const ModelFile large({.layers = 6}), draft({.layers = 3, .seed = 2});
  const Engine::Options options{.context = 4096, .ubatch = 1024};
  const auto tokens = random_tokens(1000, 1);
  for (const bool draft_first : {false, true}) {
    const LoadedPlugin plugin(Variables{{"TOKENSPARSE_COVERAGE", "0.5"},
                                        {"TOKENSPARSE_MIN_KEYS", "0"},
                                        {"TOKENSPARSE_MIN_ROWS", "64"},
                                        {"TOKENSPARSE_MIN_TOKENS", "16"}});
    Engine one((draft_first ? draft : large).path(), options, {});
    Engine other((draft_first ? large : draft).path(), options, {});
    int64_t sparse = 0, served = 0;
    // The older one goes first: the host asks about its graph while the other is the last made.
    for (int i = 0; i < 4; ++i) {
      (i % 2 == 0 ? one : other).decode(tokens);
      const bool is_draft = (i % 2 == 0) == draft_first;
      sparse += is_draft ? 1 : 4;
      served += is_draft ? 3 : 6;
      EXPECT_EQ(plugin.served(), served);
      EXPECT_EQ(plugin.sparse(), sparse) << i << ", draft first " << draft_first;
    }
  }
}

TEST(Plugin, LayersThatNeverWereSparseAreNamedWithTheReason) {
  const ModelFile model({.arch = "gemma3", .layers = 4, .sliding_window = 128});
  const LoadedPlugin plugin(Variables{{"TOKENSPARSE_KEEP", "0.5"},
                                      {"TOKENSPARSE_MIN_KEYS", "0"},
                                      {"TOKENSPARSE_MIN_ROWS", "64"},
                                      {"TOKENSPARSE_MIN_TOKENS", "64"}});
  Engine(model.path(), {.ubatch = 1024}, {}).decode(random_tokens(1000, 1));
  EXPECT_EQ(plugin.sparse(), 1) << plugin.summary();
  EXPECT_NE(plugin.summary().find("layers 2 never sparse: a mask of another kind"),
            std::string::npos)
      << plugin.summary();
}

/// What the plugin says on stderr while `use` runs.
template <typename Use>
std::string said_by(Use&& use) {
  testing::internal::CaptureStderr();
  use();
  return testing::internal::GetCapturedStderr();
}

TEST(Plugin, SaysBeforeTheFirstPromptWhatWillNotHappen) {
  const ModelFile model({});
  const LoadedPlugin plugin(Variables{{"TOKENSPARSE_COVERAGE", "0.1"}});
  const std::string said =
      said_by([&] { Engine(model.path(), {.ubatch = 512}, {}).decode(random_tokens(700, 1)); });
  EXPECT_NE(
      said.find("no layer will be sparse: the host reads prompts in chunks of 512 rows, below "
                "min_rows 1024; start it with -ub 2048"),
      std::string::npos)
      << said;
}

/// Of a tiny model with these numbers.
TinyModel with_numbers(const ggml_adapter::ModelNumbers& numbers) {
  return {.layers = numbers.num_layers,
          .embd = 32,
          .heads = numbers.num_heads,
          .kv_heads = numbers.num_kv_heads,
          .head_dim = numbers.head_dim,
          .ff = 32};
}

TEST(Plugin, TakesWhatWasMeasuredOnAModelWithItsNumbersAndSaysSo) {
  const ggml_adapter::Setting& measured = ggml_adapter::measured_settings().front();
  const ModelFile known(with_numbers(measured.model)), other({.layers = 4});
  const Variables variables{
      {"TOKENSPARSE_SETTING", "recommended"}, {"TOKENSPARSE_COVERAGE", "0.5"},
      {"TOKENSPARSE_LAYERS", "1-2"},          {"TOKENSPARSE_MIN_KEYS", "0"},
      {"TOKENSPARSE_MIN_ROWS", "64"},         {"TOKENSPARSE_MIN_TOKENS", "16"}};
  const LoadedPlugin plugin(variables);
  const auto prompt = random_tokens(400, 1);
  std::string said = said_by([&] { Engine(known.path(), {}, {}).decode(prompt); });
  EXPECT_NE(said.find("the setting measured on " + measured.model.name +
                      ": sparse attention as in " + measured.name + ", coverage 0.5"),
            std::string::npos)
      << said;
  EXPECT_EQ(plugin.sparse(), 2) << "what was given stays";
  said = said_by([&] { Engine(other.path(), {}, {}).decode(prompt); });
  EXPECT_NE(said.find("no setting was measured on a model with these numbers"), std::string::npos)
      << said;
  EXPECT_EQ(plugin.sparse(), 4) << plugin.summary();
}

TEST(Plugin, SaysThatFlashAttentionIsOff) {
  const ModelFile model({});
  const LoadedPlugin plugin;
  const std::string said = said_by([&] {
    Engine(model.path(), {.flash_attention = LLAMA_FLASH_ATTN_TYPE_DISABLED}, {})
        .decode(random_tokens(200, 1));
  });
  EXPECT_NE(said.find("is flash attention on (-fa on)?"), std::string::npos) << said;
  EXPECT_NE(plugin.summary().find("0 nodes to serve: is flash attention on (-fa on)?"),
            std::string::npos)
      << plugin.summary();
}

TEST(Plugin, VerboseIsALineAPromptOnceItIsRead) {
  const ModelFile model({});
  const LoadedPlugin plugin(Variables{{"TOKENSPARSE_VERBOSE", "1"}});
  Engine engine(model.path(), {.ubatch = 512}, {});
  EXPECT_EQ(said_by([&] { engine.decode(random_tokens(700, 1)); }).find("prompt of"),
            std::string::npos)
      << "more of it may follow";
  std::string said = said_by([&] { engine.decode(random_tokens(1, 2)); });
  EXPECT_NE(said.find("prompt of 700 query rows in 2 chunks over 700 keys in "), std::string::npos)
      << said;
  EXPECT_NE(said.find(" s: 6 attention nodes in "), std::string::npos) << said;
  EXPECT_EQ(said.find("chunk of"), std::string::npos) << said;
  // A second one on the first as its prefix, and one in its place: no decoding between.
  said = said_by([&] {
    engine.decode(random_tokens(100, 3));
    llama_memory_clear(llama_get_memory(engine.context()), true);
    engine.position(0) = 0;
    engine.decode(random_tokens(80, 4));
    engine.decode(random_tokens(1, 5));
  });
  EXPECT_NE(said.find("prompt of 100 query rows over 801 keys in "), std::string::npos) << said;
  EXPECT_NE(said.find("prompt of 80 query rows over 80 keys in "), std::string::npos) << said;
}

TEST(Plugin, TheSummaryIsJsonInAFileAfterEveryPrompt) {
  const TemporaryFolder folder;
  const std::string path = (folder.path() / "summary.json").string();
  const auto read = [&] {
    std::ifstream file(path);
    return nlohmann::json::parse(file, nullptr, false);
  };
  const ModelFile model({.layers = 4});
  const LoadedPlugin plugin(Variables{{"TOKENSPARSE_SUMMARY", path},
                                      {"TOKENSPARSE_KEEP", "0.5"},
                                      {"TOKENSPARSE_MIN_KEYS", "0"},
                                      {"TOKENSPARSE_MIN_ROWS", "64"},
                                      {"TOKENSPARSE_MIN_TOKENS", "64"}});
  EXPECT_EQ(read()["prompts"], 0) << "there from the start";
  Engine engine(model.path(), {.ubatch = 1024}, {});
  engine.decode(random_tokens(1000, 1));
  engine.decode(random_tokens(1, 2));
  const nlohmann::json summary = read();
  EXPECT_EQ(summary["format"], "tokensparse summary 1");
  EXPECT_EQ(summary["prompts"], 1);
  EXPECT_EQ(summary["last_prompt"]["query_rows"], 1000);
  EXPECT_EQ(summary["attention"]["nodes"], 4);
  EXPECT_EQ(summary["attention"]["sparse_nodes"], 2);
  EXPECT_LT(summary["kept_share_of_sparse_layers"].get<double>(),
            summary["attention"]["kept_share"].get<double>());
  EXPECT_EQ(summary["layers"].size(), 4u);
  EXPECT_EQ(summary["layers"][1]["named_sparse"], true);
}

TEST(Plugin, ASummaryThatCannotBeWrittenIsALineAtTheStart) {
  std::string said = said_by([] {
    LoadedPlugin(Variables{{"TOKENSPARSE_SUMMARY", "/no/such/folder/s.json"}});
  });
  EXPECT_NE(said.find("TOKENSPARSE_SUMMARY: cannot write /no/such/folder/s.json: No such file"),
            std::string::npos)
      << said;
}

TEST(Plugin, VerboseTwiceIsALineAChunk) {
  const ModelFile model({});
  const LoadedPlugin plugin(Variables{{"TOKENSPARSE_VERBOSE", "2"}});
  const std::string said =
      said_by([&] { Engine(model.path(), {.ubatch = 512}, {}).decode(random_tokens(700, 1)); });
  EXPECT_NE(said.find("chunk of 512 query rows over 512 keys: 3 attention nodes in "),
            std::string::npos)
      << said;
  EXPECT_NE(said.find("chunk of 188 query rows over 700 keys: 3 attention nodes in "),
            std::string::npos)
      << said;
}

TEST(Plugin, DecodingRowsBesideASparsePromptAreExact) {
  const ModelFile model({.layers = 1});
  const LoadedPlugin plugin(Variables{{"TOKENSPARSE_KEEP", "0.5"},
                                      {"TOKENSPARSE_MIN_KEYS", "0"},
                                      {"TOKENSPARSE_MIN_ROWS", "64"},
                                      {"TOKENSPARSE_MIN_TOKENS", "64"},
                                      {"TOKENSPARSE_SPARSE_LAYERS", "all"}});
  const auto use = [](Engine& engine) {
    engine.decode(Sequences{random_tokens(60, 1), random_tokens(63, 2)});
    return engine.decode(Sequences{random_tokens(300, 3), random_tokens(1, 4)});  // the last row
  };
  expect_same_logits(model.path(), {.sequences = 2}, use);
  EXPECT_EQ(plugin.sparse(), 1) << plugin.summary();
  EXPECT_EQ(plugin.summary().find("fewer than"), std::string::npos)
      << "a decoding row is no prompt: " << plugin.summary();
}

TEST(Plugin, MemoryHasALimit) {
  const ModelFile model({});
  const LoadedPlugin plugin(Variables{{"TOKENSPARSE_MEMORY", "1"}});
  const auto use = [](Engine& engine) { return engine.decode(random_tokens(2000, 1)); };
  expect_same_logits(model.path(), {.ubatch = 2048, .cache_type = GGML_TYPE_Q8_0}, use);
  EXPECT_NE(plugin.left_to_ggml().find("3 for the limit on memory"), std::string::npos)
      << plugin.summary();
}

}  // namespace
}  // namespace tsp::test
