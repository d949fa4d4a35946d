// SPDX-License-Identifier: MIT
// The one reader of setting files.
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "adapters/ggml/repeated_key.h"
#include "adapters/ggml/setting.h"

namespace tsp::ggml_adapter {
namespace {

using Json = nlohmann::json;

constexpr const char* kFormat = "tokensparse setting 1";
constexpr const char* kProfileFormat = "tokensparse layer profile 1";

// No list or object is shown or copied: both go as deep into the stack as it is nested.
std::string shown(const Json& value) {
  constexpr size_t kMost = 60;
  if (value.is_structured()) return value.is_array() ? "a list" : "an object";
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > kMost) text = text.substr(0, kMost) + "...";
  return text;
}

/// For sentences of one line.
std::string one_line(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < ' ' || c == '\x7f') c = ' ';
  }
  return text;
}

/// A rule that was broken: `key` and "must be ...".
struct Fault {
  Fault(const std::string& key, const std::string& rule, const Json& value)
      : sentence(one_line(key.substr(0, 80)) + " " + rule + ", got " + shown(value)) {}
  /// Of a whole sentence.
  explicit Fault(const std::string& text) : sentence(one_line(text)) {}
  std::string sentence;
};

int32_t positive(const std::string& key, const Json& value) {
  constexpr int64_t kMost = 1 << 20;
  // Beyond int64 a number is a real one, or an unsigned that turns negative here.
  if (!value.is_number_integer() || value.get<int64_t>() < 1 || value.get<int64_t>() > kMost) {
    throw Fault{key, "must be an integer between 1 and " + std::to_string(kMost), value};
  }
  return value.get<int32_t>();
}

std::string text_of(const std::string& key, const Json& value) {
  if (!value.is_string()) throw Fault{key, "must be text", value};
  return one_line(value.get<std::string>());
}

ModelNumbers read_model(const Json& json) {
  if (!json.is_object()) throw Fault{"model", "must be an object", json};
  ModelNumbers model;
  for (const auto& [name, value] : json.items()) {
    const std::string key = "model." + name;
    if (name == "name") {
      model.name = text_of(key, value);
    } else if (name == "num_layers") {
      model.num_layers = positive(key, value);
    } else if (name == "num_heads") {
      model.num_heads = positive(key, value);
    } else if (name == "num_kv_heads") {
      model.num_kv_heads = positive(key, value);
    } else if (name == "head_dim") {
      model.head_dim = positive(key, value);
    } else {
      throw Fault{key,
                  "is no key of a model; there are name, num_layers, num_heads, "
                  "num_kv_heads, head_dim",
                  value};
    }
  }
  return model;
}

std::vector<int32_t> read_list(const std::string& key, const Json& json, int32_t num_layers) {
  const int32_t end = num_layers > 0 ? num_layers : kMaxLayers;
  const std::string rule =
      "must be a list of layers, each at least 0 and below " + std::to_string(end);
  if (!json.is_array()) throw Fault{key, rule, json};
  std::vector<int32_t> layers;
  for (const Json& layer : json) {
    if (!layer.is_number_integer() || layer < 0 || layer >= end) throw Fault{key, rule, layer};
    layers.push_back(layer.get<int32_t>());
  }
  return layers;
}

LayerChoice read_layers(const Json& json, int32_t num_layers) {
  for (const auto& [word, kind] :
       {std::pair{"middle", LayerChoice::Kind::kMiddle}, std::pair{"all", LayerChoice::Kind::kAll},
        std::pair{"none", LayerChoice::Kind::kNone}}) {
    if (json == word) return {kind, {}};
  }
  if (!json.is_array()) throw Fault{"layers", "must be middle, all, none or a list", json};
  return LayerChoice::of(read_list("layers", json, num_layers));
}

/// A pattern as text, or an object of "pattern" and its parameters; {} is none.
tsp_pattern_t read_blocks(const Json& json) {
  tsp_pattern_t pattern{};
  std::string broken, name;
  if (json.is_string()) {
    broken = parse_blocks(json.get<std::string>(), pattern);
  } else {
    if (!json.is_object()) throw Fault{"blocks", "must be a pattern or an object", json};
    if (json.empty()) return pattern;
    std::vector<BlockParameter> parameters;
    for (const auto& [key, value] : json.items()) {
      if (key == "pattern") {
        if (!value.is_string()) throw Fault{"blocks.pattern", "must be text", value};
        name = value.get<std::string>();
        continue;
      }
      BlockParameter& given = parameters.emplace_back();
      given.name = key;
      given.value = value.is_string() ? value.get<std::string>() : shown(value);
      if (value.is_number()) given.number = value.get<double>();
    }
    broken = make_blocks(name, parameters, pattern);
  }
  if (!broken.empty()) throw Fault{"blocks." + broken.substr(0, 400)};
  return pattern;
}

/// False where no rule has this key.
bool read_ruled(const std::string& key, const Json& value, Setting& setting) {
  for (const NumberRule& rule : number_rules()) {
    if (key != rule.key) continue;
    const bool fits = rule.integer != nullptr ? value.is_number_integer() : value.is_number();
    const std::string broken = fits ? rule.set(setting, value.get<double>()) : rule.rule();
    if (!broken.empty()) throw Fault{key, broken, value};
    return true;
  }
  for (const WordRule& rule : word_rules()) {
    if (key != rule.key) continue;
    const std::string word = value.is_string() ? value.get<std::string>() : std::string();
    const std::string broken = rule.set(setting, word);
    if (!broken.empty()) throw Fault{key, broken, value};
    return true;
  }
  return false;
}

void read_keys(const Json& json, Setting& setting) {
  if (json.contains("model")) setting.model = read_model(json["model"]);
  for (const auto& [key, value] : json.items()) {
    if (key == "format" || key == "model") continue;
    if (key == "name") {
      setting.name = text_of(key, value);
    } else if (key == "layers") {
      setting.layers = read_layers(value, setting.model.num_layers);
    } else if (key == "blocks") {
      setting.op.pattern = read_blocks(value);
    } else if (key == "accuracy") {
      if (!value.is_object()) throw Fault{key, "must be an object", value};
    } else if (!read_ruled(key, value, setting)) {
      throw Fault{key, "is no key of a setting", value};
    }
  }
  const std::string broken = contradiction(setting);
  if (!broken.empty()) throw Fault{broken};
}

/// A file of `tokensparse profile`, or of the Python package before it wrote a format.
void read_profile(const Json& json, Setting& setting) {
  static const Json missing;
  if (json.contains("layers")) setting.model.num_layers = positive("layers", json["layers"]);
  if (json.contains("model")) setting.model.name = text_of("model", json["model"]);
  if (json.contains("model_bytes")) {
    const Json& bytes = json["model_bytes"];
    if (!bytes.is_number_integer()) throw Fault{"model_bytes", "must be an integer", bytes};
    setting.model.file_bytes = bytes.get<int64_t>();
  }
  setting.layers = LayerChoice::of(
      read_list("sparse_layers", json.contains("sparse_layers") ? json["sparse_layers"] : missing,
                setting.model.num_layers));
}

void read_object(const Json& json, Setting& setting) {
  static const Json missing;
  const bool has_format = json.contains("format");
  if (has_format ? json["format"] == kProfileFormat : json.contains("sparse_layers")) {
    read_profile(json, setting);
  } else if (has_format && json["format"] == kFormat) {
    read_keys(json, setting);
  } else {
    throw Fault{"format", std::string("must be \"") + kFormat + "\"",
                has_format ? json["format"] : missing};
  }
}

}  // namespace

std::string parse_setting(const std::string& text, const std::string& file, Setting& setting) {
  std::optional<std::string> repeated;
  const Json json = parse_json<Json>(text, repeated);
  if (!json.is_object()) {
    return file + ": must be a JSON object, a setting or a profile of `tokensparse profile`";
  }
  if (repeated.has_value()) {
    return file + ": " + one_line(repeated->substr(0, 80)) + " must be given once, got it twice";
  }
  Setting read;
  try {
    read_object(json, read);
  } catch (const Fault& fault) {
    return file + ": " + fault.sentence;
  }
  setting = read;
  return "";
}

bool read_small_file(const std::string& path, std::string& text) {
  const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (file == nullptr) return false;
  char block[4096];
  constexpr size_t kMost = 16 << 20;  // more is no setting
  while (const size_t count = std::fread(block, 1, sizeof block, file.get())) {
    text.append(block, count);
    if (text.size() > kMost) return false;
  }
  return std::ferror(file.get()) == 0;
}

std::string read_setting(const std::string& path, Setting& setting) {
  if (path == kBuiltIn || path == kRecommended) {
    setting = {};
    setting.recommended = path == kRecommended;
    return "";
  }
  std::string text;
  if (!read_small_file(path, text)) return "cannot read " + path;
  return parse_setting(text, path, setting);
}

}  // namespace tsp::ggml_adapter
