// SPDX-License-Identifier: MIT
#include "cli/llama/head_map.h"

#include <nlohmann/json.hpp>
#include <optional>

#include "adapters/ggml/repeated_key.h"
#include "cli/verbs.h"

namespace tsp::cli {
namespace {

using ggml_adapter::ModelNumbers;
using Json = nlohmann::json;

constexpr const char* kFormat = "tokensparse head map 1";

[[noreturn]] void fail(const std::string& path, const std::string& rule) {
  throw Failure("head map " + path + ": " + rule);
}

/// -1 where it is none.
int32_t integer(const Json& json) {
  constexpr int64_t kMost = 1 << 20;
  if (!json.is_number_integer()) return -1;
  const auto value = json.get<int64_t>();
  return value < 0 || value > kMost ? -1 : static_cast<int32_t>(value);
}

ModelNumbers read_numbers(const Json& json, const std::string& path, const char* key) {
  const Json& object = json.contains(key) ? json[key] : json;
  const auto number = [&](const char* name) {
    const int32_t value = object.is_object() && object.contains(name) ? integer(object[name]) : -1;
    if (value < 1) fail(path, std::string(key) + "." + name + " must be a positive integer");
    return value;
  };
  ModelNumbers numbers;
  numbers.num_layers = number("num_layers");
  numbers.num_heads = number("num_heads");
  numbers.num_kv_heads = number("num_kv_heads");
  numbers.head_dim = number("head_dim");
  return numbers;
}

std::vector<HeadMap::Head> read_heads(const Json& json, const HeadMap& map,
                                      const std::string& path) {
  const std::string rule = "must name one or more [layer, head] of the draft's " +
                           std::to_string(map.draft.num_layers) + " layers of " +
                           std::to_string(map.draft.num_heads) + " heads for each KV head";
  std::vector<HeadMap::Head> heads;
  if (!json.is_array() || json.empty()) fail(path, "heads " + rule);
  for (const Json& pair : json) {
    if (!pair.is_array() || pair.size() != 2) fail(path, "heads " + rule);
    const HeadMap::Head head{integer(pair[0]), integer(pair[1])};
    if (head.layer < 0 || head.layer >= map.draft.num_layers || head.head < 0 ||
        head.head >= map.draft.num_heads) {
      fail(path, "heads " + rule + ", one is [" + std::to_string(head.layer) + ", " +
                     std::to_string(head.head) + "]");
    }
    heads.push_back(head);
  }
  return heads;
}

void check_model(const HeadMap& map, const char* what, const ModelNumbers& made_for,
                 const ModelNumbers& found) {
  const std::string fault = contradiction(made_for, found);
  if (fault.empty()) return;
  fail(map.path, std::string(what) + " must be the one it was made for: it " + fault);
}

}  // namespace

HeadMap::HeadMap(const std::string& file) : path(file) {
  std::string text;
  if (!ggml_adapter::read_small_file(path, text)) fail(path, "cannot be read");
  std::optional<std::string> repeated;
  const Json json = parse_json<Json>(text, repeated);
  if (!json.is_object() || repeated.has_value()) fail(path, "must be a JSON object, each key once");
  if (!json.contains("format") || json["format"] != kFormat) {
    fail(path, std::string("format must be \"") + kFormat + "\"");
  }
  target = read_numbers(json, path, "target");
  draft = read_numbers(json, path, "draft");
  const auto layers = static_cast<size_t>(target.num_layers);
  const auto groups = static_cast<size_t>(target.num_kv_heads);
  const std::string shape = "heads must be given for " + std::to_string(layers) + " layers of " +
                            std::to_string(groups) + " KV heads";
  const Json& list = json.contains("heads") ? json["heads"] : json;
  if (!list.is_array() || list.size() != layers) fail(path, shape);
  for (const Json& layer : list) {
    if (!layer.is_array() || layer.size() != groups) fail(path, shape);
    auto& sets = heads.emplace_back();
    for (const Json& set : layer) sets.push_back(read_heads(set, *this, path));
  }
}

void HeadMap::check(const ModelNumbers& target_numbers, const ModelNumbers& draft_numbers) const {
  check_model(*this, "the model", target, target_numbers);
  check_model(*this, "the draft", draft, draft_numbers);
}

}  // namespace tsp::cli
