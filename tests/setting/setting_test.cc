// SPDX-License-Identifier: MIT
// The one reader of settings, on the files that the Python package is tested with too.
#include "adapters/ggml/setting.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <clocale>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "adapters/ggml/sparse_policy.h"
#include "tests/support/temporary_folder.h"

namespace tsp::ggml_adapter {
namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

const fs::path kFixtures = fs::path(TSP_SOURCE_DIR) / "tests/fixtures/settings";

Json json_of(const std::string& name) {
  std::ifstream file(kFixtures / name);
  return Json::parse(file);
}

/// As expected.json has it.
Json seen(const Setting& setting, const Json& wanted) {
  Json json;
  for (const NumberRule& rule : number_rules()) json[rule.key] = rule.get(setting);
  for (const WordRule& rule : word_rules()) json[rule.key] = rule.word(setting);
  const bool listed = setting.layers.kind == LayerChoice::Kind::kListed;
  json["layers"] = listed ? Json(setting.layers.listed) : Json(setting.layers.text());
  if (!setting.name.empty()) json["name"] = setting.name;
  if (setting.chooses_blocks()) {
    Json& blocks = json["blocks"];
    blocks["pattern"] = pattern_names()[static_cast<size_t>(setting.op.pattern.kind)];
    for (const BlockParameter& each : changed_parameters(setting.op.pattern)) {
      blocks[each.name] = each.number ? Json(*each.number) : Json(each.value);
    }
  }
  if (!wanted.contains("model")) return json;
  Json& model = json["model"] = Json::object();
  if (!setting.model.name.empty()) model["name"] = setting.model.name;
  for (const auto& [key, value] : {std::pair{"num_layers", setting.model.num_layers},
                                   std::pair{"num_heads", setting.model.num_heads},
                                   std::pair{"num_kv_heads", setting.model.num_kv_heads},
                                   std::pair{"head_dim", setting.model.head_dim}}) {
    if (value != 0) model[key] = value;
  }
  return json;
}

/// Numbers as the floats that they are kept in.
Json as_floats(Json json) {
  for (Json& value : json) {
    if (value.is_number()) value = static_cast<float>(value.get<double>());
    if (value.is_object()) value = as_floats(value);
  }
  return json;
}

TEST(Setting, ValidFilesGiveWhatTheyShould) {
  const Json expected = json_of("expected.json");
  int found = 0;
  for (const auto& entry : fs::directory_iterator(kFixtures)) {
    const std::string name = entry.path().filename();
    if (!name.starts_with("valid_")) continue;
    ++found;
    ASSERT_TRUE(expected.contains(name)) << name;
    Setting setting;
    EXPECT_EQ(read_setting(entry.path(), setting), "");
    EXPECT_EQ(as_floats(seen(setting, expected[name])), as_floats(expected[name])) << name;
  }
  EXPECT_EQ(found, expected.size());
}

TEST(Setting, InvalidFilesNameFileKeyRuleAndValue) {
  int found = 0;
  for (const auto& entry : fs::directory_iterator(kFixtures)) {
    const std::string name = entry.path().stem();
    if (!name.starts_with("invalid_")) continue;
    ++found;
    const size_t start = std::string("invalid_").size();
    const std::string key = name.substr(start, name.find('-') - start);
    Setting setting;
    setting.op.coverage = 0.5f;
    const std::string fault = read_setting(entry.path(), setting);
    EXPECT_TRUE(fault.starts_with(entry.path().string() + ": ")) << name << ": " << fault;
    EXPECT_EQ(fault.find('\n'), std::string::npos) << fault;
    if (key != "JSON") {
      EXPECT_NE(fault.find(": " + key + " "), std::string::npos) << name << ": " << fault;
      EXPECT_NE(fault.find(", got "), std::string::npos) << name << ": " << fault;
    } else {
      EXPECT_NE(fault.find("JSON"), std::string::npos) << name << ": " << fault;
    }
    EXPECT_EQ(setting.op.coverage, 0.5f) << "as it was";
  }
  EXPECT_GT(found, 60);
}

TEST(Setting, LayerLists) {
  for (const Json& entry : json_of("layer_lists.json")) {
    const std::string text = entry["text"];
    const int32_t num_layers = entry["num_layers"];
    LayerChoice choice;
    const std::string broken = parse_layers(text, choice);
    const bool refused = !broken.empty() || choice.highest() >= num_layers;
    EXPECT_EQ(refused, entry["layers"].is_null()) << text;
    if (!refused) {
      EXPECT_EQ(Json(choice.layers(num_layers)), entry["layers"]) << text;
    }
    if (!broken.empty()) {
      EXPECT_NE(broken.find("got "), std::string::npos) << broken;
    }
  }
}

TEST(Setting, BlockTexts) {
  for (const Json& entry : json_of("block_texts.json")) {
    const std::string text = entry["text"];
    tsp_pattern_t pattern{}, again{};
    const std::string broken = parse_blocks(text, pattern);
    if (entry.contains("refused")) {
      EXPECT_EQ(broken.find(entry["refused"].get<std::string>() + " must "), 0u)
          << text << ": " << broken;
      EXPECT_NE(broken.find(", got "), std::string::npos) << broken;
      EXPECT_EQ(pattern.kind, TSP_PATTERN_NONE) << "as it was";
      continue;
    }
    EXPECT_EQ(broken, "") << text;
    EXPECT_EQ(blocks_text(pattern), entry["means"].get<std::string>()) << text;
    EXPECT_EQ(parse_blocks(blocks_text(pattern), again), "");
    EXPECT_EQ(blocks_text(again), blocks_text(pattern));
  }
}

TEST(Setting, BlocksAloneAreSparse) {
  Setting setting = exact();
  EXPECT_FALSE(setting.sparse());
  ASSERT_EQ(parse_blocks("xattention", setting.op.pattern), "");
  EXPECT_TRUE(setting.sparse() && setting.chooses_blocks() && !setting.chooses_tokens());
  EXPECT_FALSE(exact(setting).sparse());
}

TEST(Setting, ListsOfBlocksAreOfNoMoreHeadsThanThoseOfTokens) {
  Setting setting;  // tokens: share kv_group
  ASSERT_EQ(parse_blocks("pooled,share=layer", setting.op.pattern), "");
  EXPECT_EQ(contradiction(setting),
            "blocks.share must be no wider than share (kv_group), got layer");
  setting.op.coverage = 0;
  EXPECT_EQ(contradiction(setting), "") << "no tokens are chosen";
}

TEST(Setting, TextOfLayersIsReadAgain) {
  for (const char* text : {"middle", "all", "none", "3", "1-22,25", "1-2,4,6-9"}) {
    LayerChoice choice;
    EXPECT_EQ(parse_layers(text, choice), "");
    EXPECT_EQ(choice.text(), text);
  }
}

TEST(Setting, NestedDeepIsRefusedNotFollowed) {
  const std::string deep = std::string(1 << 20, '[') + std::string(1 << 20, ']');
  for (const char* key : {"coverage", "layers", "model", "name", "format", "colour"}) {
    Setting setting;
    const std::string text =
        R"({"format": "tokensparse setting 1", ")" + std::string(key) + "\": " + deep + "}";
    EXPECT_NE(parse_setting(text, "deep", setting), "") << key;
  }
}

TEST(Setting, SentencesAreOneLine) {
  Setting setting;
  const std::string fault =
      parse_setting(R"({"format": "tokensparse setting 1", "a\nb": "c\nd"})", "file", setting);
  EXPECT_EQ(fault, "file: a b is no key of a setting, got \"c\\nd\"");
}

TEST(Setting, BuiltInIsNoFile) {
  Setting setting;
  setting.op.coverage = 0.5f;
  EXPECT_EQ(read_setting(kBuiltIn, setting), "");
  EXPECT_EQ(setting.op.coverage, Setting().op.coverage);
  EXPECT_EQ(read_setting("/no/such/file", setting), "cannot read /no/such/file");
  EXPECT_EQ(read_setting("/", setting), "cannot read /");
}

TEST(Setting, WhatWasMeasuredIsBuiltInFromTheFolderOfSettings) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(fs::path(TSP_SOURCE_DIR) / "settings")) {
    if (entry.path().extension() == ".json") names.push_back(entry.path().stem());
  }
  EXPECT_EQ(measured_settings().size(), names.size());
  for (const Setting& setting : measured_settings()) {
    EXPECT_EQ(std::count(names.begin(), names.end(), setting.name), 1) << setting.name;
    const ModelNumbers& model = setting.model;
    EXPECT_GT(model.num_layers * model.num_heads * model.num_kv_heads * model.head_dim, 0)
        << setting.name;
    EXPECT_FALSE(model.name.empty());
  }
}

TEST(Setting, TheRecommendedOneIsThatOfAModelWithAllFourNumbers) {
  Setting asked;
  EXPECT_EQ(read_setting(kRecommended, asked), "");
  ASSERT_TRUE(asked.recommended);
  for (const Setting& measured : measured_settings()) {
    const Setting found = recommended(asked, measured.model);
    EXPECT_EQ(found.name, measured.name);
    EXPECT_FALSE(found.recommended);
    for (int32_t ModelNumbers::*number : {&ModelNumbers::num_layers, &ModelNumbers::num_heads,
                                          &ModelNumbers::num_kv_heads, &ModelNumbers::head_dim}) {
      ModelNumbers other = measured.model;
      other.*number += 1;
      const Setting none = recommended(asked, other);
      EXPECT_EQ(none.name, "");
      EXPECT_EQ(none.op.coverage, Setting().op.coverage) << "the built-in one";
      other.*number = 0;
      EXPECT_EQ(recommended(asked, other).name, "") << "not known";
    }
  }
}

TEST(Setting, WhatWasGivenByNameOutlastsWhatIsRecommended) {
  ASSERT_FALSE(measured_settings().empty());
  const Setting& measured = measured_settings().front();
  Setting asked;
  asked.recommended = true;
  asked.op.band = 7;
  asked.op.sink = 9;  // not given: changed by nobody
  asked.op.share = TSP_SHARE_LAYER;
  ASSERT_EQ(parse_layers("3", asked.layers), "");
  asked.given = {"band", "share", "layers"};
  const Setting found = recommended(asked, measured.model);
  EXPECT_EQ(found.op.band, 7);
  EXPECT_EQ(found.op.share, TSP_SHARE_LAYER);
  EXPECT_EQ(found.layers.text(), "3");
  EXPECT_EQ(found.op.sink, measured.op.sink);
  EXPECT_EQ(found.op.coverage, measured.op.coverage);
  asked.recommended = false;
  EXPECT_EQ(recommended(asked, measured.model).op.sink, 9) << "as it is";
}

TEST(Setting, LongCallsHaveACoverageOfTheirOwn) {
  Setting setting;
  EXPECT_EQ(setting.coverage_of(1 << 20), setting.op.coverage) << "none are long at first";
  setting.long_keys = 100;
  setting.long_coverage = 0.05f;
  EXPECT_EQ(setting.coverage_of(99), setting.op.coverage);
  EXPECT_EQ(setting.coverage_of(100), 0.05f);
}

TEST(Setting, AProfileHoldsTheBytesOfItsFile) {
  Setting setting;
  EXPECT_NE(parse_setting(R"({"sparse_layers": [1], "model_bytes": "x"})", "p", setting)
                .find("model_bytes must be an integer, got \"x\""),
            std::string::npos);
  EXPECT_EQ(parse_setting(R"({"sparse_layers": [1], "model_bytes": 7})", "p", setting), "");
  EXPECT_EQ(setting.model.file_bytes, 7);
}

TEST(Setting, NumbersOfAModelContradict) {
  ModelNumbers setting, model;
  setting.name = "mine";
  setting.num_layers = model.num_layers = 28;
  setting.num_heads = model.num_heads = 12;
  model.num_kv_heads = 2;
  EXPECT_EQ(contradiction(setting, model), "");
  EXPECT_EQ(contradiction({}, model), "");
  model.num_layers = 24;
  EXPECT_EQ(contradiction(setting, model), "is for mine with num_layers 28, this model has 24");
  model.num_layers = 0;
  EXPECT_EQ(contradiction(setting, model), "") << "not known";
}

TEST(Policy, LayerThenKeysThenRows) {
  using Verdict = SparsePolicy::Verdict;
  Setting setting;
  setting.min_keys = 100;
  setting.min_rows = 50;
  SparsePolicy policy(setting, 4);
  EXPECT_EQ(policy.verdict(1, 50, 100), Verdict::kSparse);
  EXPECT_EQ(policy.verdict(2, 1000, 100), Verdict::kSparse);
  EXPECT_EQ(policy.verdict(0, 50, 100), Verdict::kExact);
  EXPECT_EQ(policy.verdict(3, 50, 100), Verdict::kExact);
  EXPECT_EQ(policy.verdict(-1, 50, 100), Verdict::kExact) << "a node without a layer";
  EXPECT_EQ(policy.verdict(1, 50, 99), Verdict::kFewKeys);
  EXPECT_EQ(policy.verdict(1, 49, 100), Verdict::kFewRows);
  policy.set_num_layers(0);
  EXPECT_EQ(policy.verdict(1, 50, 100), Verdict::kExact) << "the last layer is not known";
  policy.set_num_layers(4);
  policy.stop();
  EXPECT_EQ(policy.verdict(1, 50, 100), Verdict::kExact);
}

TEST(Policy, PrecisionFollowsTheLinearLayersWhereItMay) {
  const auto settled = [](Precision precision, bool rounds, bool can) {
    Setting setting;
    setting.precision = precision;
    settle_precision(setting, rounds, can);
    return setting.op.precision;
  };
  EXPECT_EQ(settled(Precision::kAuto, true, true), TSP_PRECISION_BF16);
  EXPECT_EQ(settled(Precision::kAuto, false, true), TSP_PRECISION_F32);
  EXPECT_EQ(settled(Precision::kAuto, true, false), TSP_PRECISION_F32);
  EXPECT_EQ(settled(Precision::kF32, true, true), TSP_PRECISION_F32);
  EXPECT_EQ(settled(Precision::kBf16, false, true), TSP_PRECISION_BF16);
}

TEST(Numbers, AreReadAndWrittenTheSameInEveryLocale) {
  // A locale that writes 0,1: compiled here where the machine has its source.
  const test::TemporaryFolder temporary;
  const std::string folder = temporary.path().string();
  const std::string compile =
      "localedef -i de_DE -f UTF-8 " + folder + "/de_DE.UTF-8 >/dev/null 2>&1";
  const bool compiled = std::system(compile.c_str()) == 0;
  setenv("LOCPATH", folder.c_str(), 1);
  const bool comma = compiled && std::setlocale(LC_ALL, "de_DE.UTF-8") != nullptr;
  double value = 0;
  EXPECT_TRUE(parse_number("0.25", value));
  EXPECT_EQ(value, 0.25);
  EXPECT_TRUE(parse_number("-1e-3", value));
  EXPECT_EQ(value, -1e-3);
  for (const char* text : {"", "0,25", "x", "1 ", " 1", "1x", "."}) {
    EXPECT_FALSE(parse_number(text, value)) << text;
  }
  EXPECT_EQ(number_text(0.25), "0.25");
  EXPECT_EQ(number_text(0.9999999), "0.9999999");
  EXPECT_EQ(number_text(1048576), "1048576");
  EXPECT_EQ(number_text(-3), "-3");
  EXPECT_EQ(number_text(1e-9), "1e-09");
  std::setlocale(LC_ALL, "C");
  unsetenv("LOCPATH");
  if (!comma) GTEST_SKIP() << "no locale with a decimal comma: seen in C alone";
}

}  // namespace
}  // namespace tsp::ggml_adapter
