// SPDX-License-Identifier: MIT
// Any bytes as a setting file, a layer list: refused with one sentence, or within every rule.
#include <cstdio>
#include <cstdlib>

#include "adapters/ggml/setting.h"
#include "tests/fuzz/fuzz.h"

namespace {

using namespace tsp::ggml_adapter;

long accepted = 0, refused = 0;

void require(bool holds) {
  if (!holds) std::abort();
}

void check_layers(const LayerChoice& choice) {
  const bool listed = choice.kind == LayerChoice::Kind::kListed;
  require(listed != choice.listed.empty());
  int32_t before = -1;
  for (const int32_t layer : choice.listed) {
    require(layer > before && layer < kMaxLayers);
    before = layer;
  }
  LayerChoice again;
  require(parse_layers(choice.text(), again).empty());
  require(again.kind == choice.kind && again.listed == choice.listed);
}

void check_blocks(const tsp_pattern_t& pattern) {
  tsp_pattern_t again{};
  require(parse_blocks(blocks_text(pattern), again).empty());
  require(again.kind == pattern.kind && blocks_text(again) == blocks_text(pattern));
}

void check(const Setting& setting) {
  Setting again = setting;
  for (const NumberRule& rule : number_rules()) {
    require(rule.set(again, rule.get(setting)).empty());
  }
  for (const WordRule& rule : word_rules()) require(rule.set(again, rule.word(setting)).empty());
  check_layers(setting.layers);
  check_blocks(setting.op.pattern);
  require(contradiction(setting).empty());
  require(contradiction(setting.model, setting.model).empty());
}

}  // namespace

std::vector<std::string> fuzz_seeds() {
  const std::string format = R"("format":"tokensparse setting 1")";
  return {"{" + format + "}",
          "{" + format + R"(,"layers":"middle","coverage":0.1,"keep":0,"share":"kv_group"})",
          "{" + format + R"(,"layers":[1,2,3],"sink":64,"band":256,"window":128,"pool":7})",
          "{" + format + R"(,"model":{"name":"m","num_layers":28,"num_heads":12,"head_dim":128}})",
          "{" + format + R"(,"min_tokens":1024,"min_keys":0,"min_rows":64,"precision":"auto"})",
          "{" + format + R"(,"dropped":"zero","accuracy":{"a":[1,{"b":null}]},"name":"n"})",
          "{" + format + R"(,"blocks":{"pattern":"xattention","xattention_threshold":0.8}})",
          "{" + format + R"(,"blocks":"flexprefill,gamma=0.9,tau=0,min_budget=512"})",
          "xattention,threshold=0.8,stride=8,block=64",
          "minference, vertical_size=30 , slash = 800, share=kv_group",
          R"({"format":"tokensparse layer profile 1","layers":6,"sparse_layers":[1,2]})",
          R"({"sparse_layers":[1],"model_bytes":7})",
          "1-22,25",
          " all ",
          "0-3, 7 ,9-12"};
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  Setting setting;
  const std::string fault = parse_setting(text, "file", setting);
  (fault.empty() ? accepted : refused) += 1;
  require(fault.find('\n') == std::string::npos);
  check(setting);
  LayerChoice choice;
  (parse_layers(text, choice).empty() ? accepted : refused) += 1;
  check_layers(choice);
  tsp_pattern_t pattern{};
  (parse_blocks(text, pattern).empty() ? accepted : refused) += 1;
  check_blocks(pattern);
  return 0;
}

bool fuzz_reached_enough() {
  std::printf("%ld settings and lists accepted, %ld refused\n", accepted, refused);
  return accepted > 100 && refused > 1000;
}
