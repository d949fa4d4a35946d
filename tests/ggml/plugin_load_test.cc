// SPDX-License-Identifier: MIT
// When and into what the plugin is loaded, and what it is told: it never takes the host down.
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "adapters/ggml/plugin/host.h"
#include "adapters/ggml/plugin/settings.h"
#include "ggml-backend.h"
#include "tests/ggml/plugin_host.h"

namespace tsp::test {
namespace {

using ggml_plugin::Settings;
using Variables = LoadedPlugin::Variables;

int64_t threads_of_this_process() {
  using Iterator = std::filesystem::directory_iterator;
  return std::distance(Iterator("/proc/self/task"), Iterator());
}

int64_t open_files_of_this_process() {
  using Iterator = std::filesystem::directory_iterator;
  return std::distance(Iterator("/proc/self/fd"), Iterator());
}

size_t accelerators() {
  size_t count = 0;
  for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
    count += ggml_backend_dev_type(ggml_backend_dev_get(i)) == GGML_BACKEND_DEVICE_TYPE_ACCEL;
  }
  return count;
}

TEST(PluginLoad, TwiceIsOnce) {
  const ModelFile model({});
  const LoadedPlugin plugin;
  ASSERT_NE(plugin.backend(), nullptr);
  EXPECT_EQ(ggml_backend_load(TSP_PLUGIN), plugin.backend());
  EXPECT_EQ(accelerators(), 1u);
  Engine(model.path(), {}, {}).decode(random_tokens(100, 1));
  EXPECT_EQ(plugin.served(), 3);
}

TEST(PluginLoad, ASecondCopyOfTheFileIsRefused) {
  const LoadedPlugin plugin;
  const TemporaryFolder folder;
  const auto copy = folder.path() / "copy.so";
  std::filesystem::copy_file(TSP_PLUGIN, copy);
  EXPECT_EQ(ggml_backend_load(copy.c_str()), nullptr);
  EXPECT_EQ(accelerators(), 1u);
}

TEST(PluginLoad, AfterTheModel) {
  const ModelFile model({});
  Engine before(model.path(), {}, {});
  const LoadedPlugin plugin;
  before.decode(random_tokens(100, 1));
  EXPECT_EQ(plugin.served(), 0) << "a context keeps the backends it was made with";
  Engine(model.path(), {}, {}).decode(random_tokens(100, 1));
  EXPECT_EQ(plugin.served(), 3);
}

TEST(PluginLoad, UnloadedWithContextsAlive) {
  const ModelFile model({});
  LoadedPlugin plugin;
  Engine engine(model.path(), {}, {});
  engine.decode(random_tokens(100, 1));
  plugin.unload();
  EXPECT_EQ(accelerators(), 0u);
  engine.decode(random_tokens(100, 2));
  EXPECT_EQ(plugin.served(), 6) << "the context still has its backend";
  LoadedPlugin again(Variables{{"TOKENSPARSE_SERVE_ROWS", "128"}});
  engine.decode(random_tokens(100, 3));
  Engine(model.path(), {}, {}).decode(random_tokens(100, 3));
  EXPECT_EQ(again.served(), 3) << "the old context as it was made, a new one with 128 rows";
}

/// How often the plugin said `words` on stderr while `use` ran.
template <typename Use>
int64_t times_said(const std::string& words, Use&& use) {
  testing::internal::CaptureStderr();
  use();
  const std::string said = testing::internal::GetCapturedStderr();
  int64_t count = 0;
  for (size_t at = 0; (at = said.find(words, at)) != std::string::npos; at += words.size()) ++count;
  return count;
}

TEST(PluginLoad, ALayerThatDoesNotExistIsSaidOnce) {
  const ModelFile model({});
  const auto use = [&] {
    const LoadedPlugin plugin(Variables{{"TOKENSPARSE_KEEP", "0.5"},
                                        {"TOKENSPARSE_MIN_KEYS", "0"},
                                        {"TOKENSPARSE_MIN_ROWS", "64"},
                                        {"TOKENSPARSE_MIN_TOKENS", "16"},
                                        {"TOKENSPARSE_SPARSE_LAYERS", "1,99"}});
    for (uint32_t i = 0; i < 2; ++i) {
      Engine(model.path(), {}, {}).decode(random_tokens(500, i));
    }
    EXPECT_EQ(plugin.served(), 2 * 3);
    EXPECT_EQ(plugin.sparse(), 2) << "layer 1 is sparse all the same";
  };
  EXPECT_EQ(times_said("there is no layer 99 in this model of 3 layers", use), 1);
}

TEST(PluginLoad, ASettingForAnotherModelIsSaidOnceAndAttentionIsExact) {
  const ModelFile model({});
  const TemporaryFolder folder;
  const std::filesystem::path file = folder.path() / "setting.json";
  std::ofstream(file) << R"({"format": "tokensparse setting 1", "min_keys": 0, "min_rows": 64,
      "keep": 0.5, "min_tokens": 16, "model": {"name": "other", "num_heads": 14}})";
  const auto use = [&] {
    const LoadedPlugin plugin(Variables{{"TOKENSPARSE_SETTING", file}});
    Engine(model.path(), {}, {}).decode(random_tokens(500, 1));
    EXPECT_EQ(plugin.served(), 3);
    EXPECT_EQ(plugin.sparse(), 0);
  };
  EXPECT_EQ(times_said("the setting is for other with num_heads 14, this model has 4; attention "
                       "stays exact",
                       use),
            1);
}

TEST(PluginLoad, ACoverageOf2IsSaidAndAttentionIsExact) {
  const ModelFile model({});
  const auto use = [&] {
    const LoadedPlugin plugin(
        Variables{{"TOKENSPARSE_COVERAGE", "2"}, {"TOKENSPARSE_SPARSE_LAYERS", "1"}});
    Engine(model.path(), {}, {}).decode(random_tokens(500, 1));
    EXPECT_EQ(plugin.served(), 3);
    EXPECT_EQ(plugin.sparse(), 0);
  };
  EXPECT_EQ(
      times_said("must be a number between 0 and 0.9999999, got 2; using exact attention", use), 1);
}

TEST(PluginLoad, AnEngineThatIsNotThereIsNotPromised) {
  const auto use = [] {
    const LoadedPlugin plugin(Variables{{"TOKENSPARSE_LINEAR", "onednn"},
                                        {"TOKENSPARSE_ONEDNN_LIBRARY", "/nowhere/libdnnl.so.3"}});
  };
  EXPECT_EQ(times_said("linear layers are left to ggml: ", use), 1);
  EXPECT_EQ(times_said("linear layers by oneDNN", use), 0);
}

TEST(PluginLoad, DisabledIsNotThere) {
  const LoadedPlugin plugin(Variables{{"TOKENSPARSE_DISABLE", "1"}});
  EXPECT_EQ(plugin.backend(), nullptr);
  EXPECT_EQ(accelerators(), 0u);
}

TEST(PluginLoad, RunsOnThreadsOfTheHost) {
  const ModelFile model({});
  const auto tokens = random_tokens(300, 1);
  { Engine(model.path(), {.threads = 3}, {}).decode(tokens); }  // ggml's threads start
  const int64_t threads = threads_of_this_process();
  const LoadedPlugin plugin;
  std::vector<std::vector<float>> logits;
  for (const int32_t count : {1, 2, 3}) {
    logits.push_back(Engine(model.path(), {.threads = count}, {}).decode(tokens));
  }
  EXPECT_EQ(plugin.served(), 3 * 3);
  // Threads that OpenMP sent home end late on a busy machine.
  for (int i = 0; i < 500 && threads_of_this_process() > threads; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_LE(threads_of_this_process(), threads);
  EXPECT_EQ(logits[0], logits[1]) << "same bits, whatever the number of threads";
  EXPECT_EQ(logits[0], logits[2]);
}

TEST(PluginLoad, LeaksNothing) {
  const ModelFile model({});
  const LoadedPlugin plugin;
  Engine engine(model.path(), {.sequences = 2}, {});
  engine.decode(random_tokens(100, 0));
  const int64_t threads = threads_of_this_process(), files = open_files_of_this_process();
  const std::string before = plugin.summary();
  for (uint32_t request = 0; request < 200; ++request) {
    llama_memory_clear(llama_get_memory(engine.context()), true);
    engine.position(0) = engine.position(1) = 0;
    engine.decode({random_tokens(70 + request % 30, request), random_tokens(64, request)});
  }
  EXPECT_EQ(plugin.served(), 201 * 3) << plugin.summary();
  // Threads that OpenMP sent home end late on a busy machine.
  for (int i = 0; i < 500 && threads_of_this_process() > threads; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_LE(threads_of_this_process(), threads);
  EXPECT_EQ(open_files_of_this_process(), files);
}

// ---- what it is told ----

Settings settings_of(const std::vector<std::pair<std::string, std::string>>& variables) {
  std::vector<std::string> names;
  for (const auto& [key, value] : variables) names.push_back(key);
  const auto environment = [&](const char* name) -> const char* {
    for (const auto& [key, value] : variables) {
      if (key == name) return value.c_str();
    }
    return nullptr;
  };
  return ggml_plugin::read_settings(environment, names);
}

TEST(PluginSettings, ExactByDefault) {
  const Settings settings = settings_of({{"PATH", "/bin"}});
  EXPECT_FALSE(settings.setting.sparse());
  EXPECT_TRUE(settings.warnings.empty());
  EXPECT_FALSE(settings.disabled);
}

TEST(PluginSettings, BlocksAskForSparseAttentionToo) {
  const Settings both = settings_of({{"TOKENSPARSE_BLOCKS", "xattention,threshold=0.8"}});
  EXPECT_TRUE(both.setting.chooses_tokens() && both.setting.chooses_blocks());
  EXPECT_NE(describe(both).find("coverage 0.1, blocks xattention,threshold=0.8, share kv_group"),
            std::string::npos)
      << describe(both);
  const Settings alone =
      settings_of({{"TOKENSPARSE_BLOCKS", "flash"}, {"TOKENSPARSE_COVERAGE", "0"}});
  EXPECT_TRUE(alone.setting.sparse() && !alone.setting.chooses_tokens());
  EXPECT_NE(describe(alone).find("every token, blocks flash"), std::string::npos)
      << describe(alone);
  EXPECT_FALSE(settings_of({{"TOKENSPARSE_BLOCKS", "none"}, {"TOKENSPARSE_COVERAGE", "0"}})
                   .setting.sparse());
}

TEST(PluginSettings, ABadValueIsOneLineAndTheDefault) {
  const auto expect_one = [](const char* name, const char* value, const char* rule) {
    const Settings settings = settings_of({{name, value}});
    ASSERT_EQ(settings.warnings.size(), 1u) << name << "=" << value;
    EXPECT_NE(settings.warnings[0].find(name), std::string::npos) << settings.warnings[0];
    EXPECT_NE(settings.warnings[0].find(rule), std::string::npos) << settings.warnings[0];
    EXPECT_FALSE(settings.setting.sparse());
    EXPECT_EQ(settings.setting.min_rows, ggml_adapter::Setting().min_rows);
  };
  expect_one("TOKENSPARSE_COVERAGE", "2", "between 0 and 0.9999999, got 2");
  expect_one("TOKENSPARSE_MIN_KEYS", "-1", "between 0 and 1073741824, got -1; using 4096");
  expect_one("TOKENSPARSE_COVERAGE", "nan", "between 0 and");
  expect_one("TOKENSPARSE_COVERAGE", "0,1", "between 0 and");
  expect_one("TOKENSPARSE_COVERAGE", "\"0.02\"", "a number between 0 and 0.9999999, got \"0.02\"");
  expect_one("TOKENSPARSE_SHARE", "token", "one of head, kv_group, layer, got token");
  expect_one("TOKENSPARSE_BLOCKS", "xattention,threshold=2",
             "threshold must be a number above 0 and at most 1, got 2; using exact attention");
  expect_one("TOKENSPARSE_BLOCKS", "strided", "pattern must be one of none, xattention,");
  expect_one("TOKENSPARSE_BLOCKS", "flash,tau=0.1", "tau must be a parameter of flash");
  expect_one("TOKENSPARSE_THREADS", "-1", "an integer between 0 and 1024");
  expect_one("TOKENSPARSE_THREADS", "1.5", "an integer");
  expect_one("TOKENSPARSE_POOL", "4", "must be an odd integer between 1 and 1023, got 4; using 7");
  expect_one("TOKENSPARSE_MIN_ROWS", "1", "between 2 and");
  expect_one("TOKENSPARSE_SERVE_ROWS", "1", "between 2 and");
  expect_one("TOKENSPARSE_SINK", "-1", "between 0 and");
  expect_one("TOKENSPARSE_SPARSE_LAYERS", "7-3", "layers like 1-22,25");
  expect_one("TOKENSPARSE_LAYERS", "1,99999999999999999999", "below 4096");
  expect_one("TOKENSPARSE_PROFILE", "/no/such/file", "cannot read /no/such/file");
  expect_one("TOKENSPARSE_PROFILE", "/dev/null", "/dev/null: must be a JSON object");
  expect_one("TOKENSPARSE_PROFILE", "/", "cannot read /");
  expect_one("TOKENSPARSE_SETTING", "/no/such/file", "cannot read /no/such/file");
  expect_one("TOKENSPARSE_CONFIG", "/", "cannot read /");
  expect_one("TOKENSPARSE_CONFIG", "/no/such/file", "cannot read /no/such/file");
  expect_one("TOKENSPARSE_DISABLE", "yes", "one of 0, 1");
  expect_one("TOKENSPARSE_LINEAR", "mkl", "got mkl");
  expect_one("TOKENSPARSE_SUMMARY", "yes", "0, 1 or a file that ends in .json, got yes; using 1");
  expect_one("TOKENSPARSE_VERBOSE", "3", "an integer between 0 and 2");
  expect_one("TOKENSPARSE_COVRAGE", "0.1", "there is no setting named TOKENSPARSE_COVRAGE");
}

TEST(PluginSettings, OneNameOfASettingAsksForTheRestOfIt) {
  const ggml_adapter::Setting built_in;
  for (const auto& variable :
       std::vector<std::pair<std::string, std::string>>{{"TOKENSPARSE_SETTING", "built-in"},
                                                        {"TOKENSPARSE_LAYERS", "middle"},
                                                        {"TOKENSPARSE_COVERAGE", "0.1"}}) {
    const Settings settings = settings_of({variable});
    EXPECT_TRUE(settings.setting.sparse()) << variable.first;
    EXPECT_TRUE(settings.warnings.empty()) << variable.first;
    EXPECT_EQ(settings.setting.op.coverage, built_in.op.coverage);
    EXPECT_EQ(settings.setting.op.sink, built_in.op.sink);
    EXPECT_EQ(settings.setting.layers.text(), "middle");
  }
  const Settings listed =
      settings_of({{"TOKENSPARSE_COVERAGE", "0.01"}, {"TOKENSPARSE_LAYERS", "9, 4-6,5"}});
  EXPECT_EQ(listed.setting.layers.listed, (std::vector<int32_t>{4, 5, 6, 9}));
  EXPECT_TRUE(listed.warnings.empty());
  EXPECT_FALSE(settings_of({{"TOKENSPARSE_COVERAGE", "0"}}).setting.sparse());
  EXPECT_FALSE(settings_of({{"TOKENSPARSE_MIN_KEYS", "0"}}).setting.sparse()) << "asks for nothing";
  const Settings wrong =
      settings_of({{"TOKENSPARSE_SETTING", "built-in"}, {"TOKENSPARSE_COVERAGE", "1"}});
  EXPECT_FALSE(wrong.setting.sparse()) << "what was asked for is not known";
}

TEST(PluginSettings, TheRecommendedOneWaitsForTheModel) {
  const Settings settings = settings_of({{"TOKENSPARSE_SETTING", "recommended"},
                                         {"TOKENSPARSE_BAND", "128"},
                                         {"TOKENSPARSE_SPARSE_LAYERS", "2-3"},
                                         {"TOKENSPARSE_DROPPED", "zero"},
                                         {"TOKENSPARSE_SINK", "-1"}});
  EXPECT_TRUE(settings.setting.recommended && settings.setting.sparse());
  EXPECT_EQ(settings.setting.given, (std::vector<std::string>{"layers", "band", "dropped"}));
  EXPECT_EQ(settings.warnings.size(), 1u) << "of the sink";
  EXPECT_NE(describe(settings).find("as measured on the model, else sparse attention"),
            std::string::npos);
}

class TextFile {
 public:
  explicit TextFile(const std::string& text) { std::ofstream(path_) << text; }
  std::string path() const { return path_; }

 private:
  const TemporaryFolder folder_;
  const std::filesystem::path path_ = folder_.path() / "text";
};

TEST(PluginSettings, TheEnvironmentGoesBeforeTheFile) {
  const TextFile file("# comment\n coverage = 0.02 # more\nshare=layer\n\nsparse_layers = 2-3\n");
  const Settings settings =
      settings_of({{"TOKENSPARSE_CONFIG", file.path()}, {"TOKENSPARSE_SHARE", "kv_group"}});
  EXPECT_TRUE(settings.warnings.empty());
  EXPECT_FLOAT_EQ(settings.setting.op.coverage, 0.02f);
  EXPECT_EQ(settings.setting.op.share, TSP_SHARE_KV_GROUP);
  EXPECT_EQ(settings.setting.layers.listed, (std::vector<int32_t>{2, 3}));
}

TEST(PluginSettings, LinesOfTheFileThatMeanNothing) {
  const TextFile file("coverage 0.02\ncolour = red\nband = 0\n");
  const Settings settings = settings_of({{"TOKENSPARSE_CONFIG", file.path()}});
  ASSERT_EQ(settings.warnings.size(), 3u);
  EXPECT_NE(settings.warnings[0].find(":1: expected `name = value`"), std::string::npos);
  EXPECT_NE(settings.warnings[1].find(":2: no setting named colour"), std::string::npos);
  EXPECT_NE(settings.warnings[2].find("band in "), std::string::npos);
}

TEST(PluginSettings, AProfileNamesTheLayers) {
  const TextFile file(
      R"({"format": "tokensparse layer profile 1", "layers": 24, "sparse_layers": [5, 3]})");
  const Settings settings =
      settings_of({{"TOKENSPARSE_PROFILE", file.path()}, {"TOKENSPARSE_KEEP", "0.5"}});
  EXPECT_TRUE(settings.setting.sparse());
  EXPECT_EQ(settings.setting.layers.listed, (std::vector<int32_t>{3, 5}));
  EXPECT_EQ(settings.setting.model.num_layers, 24);
  const TextFile damaged(R"({"format": "tokensparse layer profile 1", "sparse_layers": [-1]})");
  EXPECT_EQ(settings_of({{"TOKENSPARSE_PROFILE", damaged.path()}}).warnings.size(), 1u);
}

TEST(PluginSettings, AFileIsTheSettingAndTheEnvironmentChangesIt) {
  const TextFile file(R"({"format": "tokensparse setting 1", "name": "mine", "coverage": 0.2,
                          "layers": [1, 2], "sink": 16})");
  const Settings settings = settings_of({{"TOKENSPARSE_SETTING", file.path()},
                                         {"TOKENSPARSE_SINK", "8"},
                                         {"TOKENSPARSE_LAYERS", "all"}});
  EXPECT_TRUE(settings.warnings.empty());
  EXPECT_FLOAT_EQ(settings.setting.op.coverage, 0.2f);
  EXPECT_EQ(settings.setting.op.sink, 8);
  EXPECT_EQ(settings.setting.layers.text(), "all");
  EXPECT_NE(describe(settings).find("sparse attention as in mine, coverage 0.2"), std::string::npos)
      << describe(settings);
}

// ---- into what it is loaded ----

TEST(PluginHost, KnowsWhatItWasComparedWith) {
  EXPECT_TRUE(ggml_plugin::is_known_version("0.25.3"));
  EXPECT_TRUE(ggml_plugin::is_known_version("0.26.0"));
  EXPECT_FALSE(ggml_plugin::is_known_version("0.9.11"));
  EXPECT_FALSE(ggml_plugin::is_known_version("0.250.1"));
  EXPECT_FALSE(ggml_plugin::is_known_version("1.25.3"));
  EXPECT_FALSE(ggml_plugin::is_known_version(""));
}

/// This program's ggml, found as the plugin finds it.
ggml_plugin::Host this_host() {
  ggml_plugin::Host host;
  EXPECT_EQ(ggml_plugin::find_host(reinterpret_cast<const void*>(&this_host), host), "");
  return host;
}

TEST(PluginHost, ThisOneFits) { EXPECT_EQ(ggml_plugin::tensor_layout_fault(this_host()), ""); }

TEST(PluginHost, OthersDoNot) {
  ggml_plugin::Host renumbered = this_host(), larger = this_host(), moved = this_host();
  renumbered.ggml_op_name = [](ggml_op op) {
    return ggml_op_name(static_cast<ggml_op>(static_cast<int>(op) + (op == GGML_OP_NONE ? 0 : 1)));
  };
  larger.ggml_tensor_overhead = [] { return sizeof(ggml_tensor) + 40; };
  moved.ggml_get_name = [](const ggml_tensor* tensor) -> const char* { return tensor->name + 8; };
  EXPECT_NE(ggml_plugin::tensor_layout_fault(renumbered), "");
  EXPECT_NE(ggml_plugin::tensor_layout_fault(larger), "");
  EXPECT_NE(ggml_plugin::tensor_layout_fault(moved), "");
}

TEST(PluginHost, AModuleWithoutGgmlIsNamed) {
  ggml_plugin::Host host;
  const std::string fault =
      ggml_plugin::find_host(reinterpret_cast<const void*>(&std::strlen), host);
  EXPECT_NE(fault.find("does not export ggml_"), std::string::npos) << fault;
}

}  // namespace
}  // namespace tsp::test
