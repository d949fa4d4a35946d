// SPDX-License-Identifier: MIT
#include "adapters/ggml/plugin/settings.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <type_traits>

namespace tsp::ggml_plugin {
namespace {

constexpr int32_t kMaxLayers = 4096;
constexpr const char* kNames[] = {
    "coverage", "keep",      "window",  "pool",    "min_tokens",    "share",    "dropped",
    "band",     "precision", "profile", "threads", "sparse_layers", "min_rows", "min_keys",
    "memory",   "disable",   "verify",  "summary", "linear"};

std::string trim(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t\r");
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

std::string number(double value) {
  char text[32];
  const bool whole = std::fabs(value) < 1e15 && value == std::floor(value);
  std::snprintf(text, sizeof text, whole ? "%.0f" : "%.7g", value);
  return text;
}

/// False when the file is not there, not readable or not a file.
bool read_text(const std::string& path, std::string& text) {
  const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (file == nullptr) return false;
  char block[4096];
  constexpr size_t kMost = 16 << 20;  // more is no settings file
  while (const size_t count = std::fread(block, 1, sizeof block, file.get())) {
    text.append(block, count);
    if (text.size() > kMost) return false;
  }
  return std::ferror(file.get()) == 0;
}

/// The raw values and where each came from; hands out parsed ones and keeps the complaints.
class Source {
 public:
  Source(const Environment& environment, std::vector<std::string>& warnings)
      : environment_(environment), warnings_(warnings) {
    read_file();
  }

  /// Whether there is a value; `origin` then says where it stands.
  bool find(const std::string& name, std::string& value, std::string& origin) const {
    std::string variable = "TOKENSPARSE_" + name;
    for (char& c : variable) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    if (const char* text = environment_(variable.c_str()); text != nullptr && *text != '\0') {
      value = trim(text);
      origin = variable;
      return true;
    }
    const auto entry = file_.find(name);
    if (entry == file_.end()) return false;
    value = entry->second;
    origin = name + " in " + path_;
    return true;
  }

  template <typename T>
  void read_number(const char* name, T& value, double low, double high) {
    std::string text, origin;
    if (!find(name, text, origin)) return;
    char* end = nullptr;
    const double parsed = std::strtod(text.c_str(), &end);
    const bool whole =
        std::is_floating_point_v<T> || parsed == static_cast<double>(static_cast<int64_t>(parsed));
    if (end == text.c_str() || *end != '\0' || !(parsed >= low && parsed <= high) || !whole) {
      warn(origin + " must be " + (std::is_floating_point_v<T> ? "a number" : "an integer") +
           " between " + number(low) + " and " + number(high) + ", got " + text + "; using " +
           number(static_cast<double>(value)));
      return;
    }
    value = static_cast<T>(parsed);
  }

  void read_choice(const char* name, int32_t& value, const std::vector<std::string>& names) {
    std::string text, origin;
    if (!find(name, text, origin)) return;
    const auto found = std::find(names.begin(), names.end(), text);
    if (found != names.end()) {
      value = static_cast<int32_t>(found - names.begin());
      return;
    }
    std::string list;
    for (const std::string& each : names) list += (list.empty() ? "" : ", ") + each;
    warn(origin + " must be one of " + list + ", got " + text + "; using " +
         names[static_cast<size_t>(value)]);
  }

  void read_switch(const char* name, bool& value) {
    int32_t chosen = value ? 1 : 0;
    read_choice(name, chosen, {"0", "1"});
    value = chosen != 0;
  }

  void warn(const std::string& sentence) { warnings_.push_back(sentence); }

 private:
  void read_file() {
    const char* path = environment_("TOKENSPARSE_CONFIG");
    if (path == nullptr || *path == '\0') return;
    path_ = path;
    std::string text;
    if (!read_text(path_, text)) {
      warn("TOKENSPARSE_CONFIG: cannot read " + path_ + "; using the environment alone");
      return;
    }
    std::istringstream file(text);
    int line_number = 0;
    for (std::string line; std::getline(file, line);) {
      ++line_number;
      line = trim(line.substr(0, line.find('#')));
      if (line.empty()) continue;
      const size_t equals = line.find('=');
      const std::string name = trim(line.substr(0, equals));
      const bool known = std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames);
      if (equals == std::string::npos || !known) {
        warn(path_ + ":" + std::to_string(line_number) +
             (equals == std::string::npos ? ": expected `name = value`, got "
                                          : ": no setting named ") +
             name);
        continue;
      }
      file_[name] = trim(line.substr(equals + 1));
    }
  }

  const Environment& environment_;
  std::vector<std::string>& warnings_;
  std::string path_;
  std::map<std::string, std::string> file_;
};

/// Empty, or what is wrong with the profile.
std::string read_profile(const std::string& path, Settings& settings) {
  std::string text;
  if (!read_text(path, text)) return "cannot read " + path;
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object() || !json.contains("format") ||
      json["format"] != "tokensparse layer profile 1" || !json.contains("sparse_layers") ||
      !json["sparse_layers"].is_array()) {
    return path + " is not a layer profile; `tokensparse profile` makes one";
  }
  std::vector<int32_t> layers;
  for (const nlohmann::json& layer : json["sparse_layers"]) {
    if (!layer.is_number_integer() || layer < 0 || layer >= kMaxLayers) {
      return path + ": sparse_layers holds something that is no layer";
    }
    layers.push_back(layer.get<int32_t>());
  }
  std::sort(layers.begin(), layers.end());
  settings.sparse_layers = layers;
  if (json.contains("layers") && json["layers"].is_number_integer()) {
    settings.profile_layers = json["layers"].get<int32_t>();
  }
  return "";
}

void read_layers(Source& source, Settings& settings) {
  std::string text, origin;
  if (source.find("sparse_layers", text, origin)) {
    if (text == "all") {
      settings.all_layers_sparse = true;
    } else if (!parse_layers(text, settings.sparse_layers)) {
      source.warn(origin + " must be `all` or layers like 4,6-9, each below 4096, got " + text +
                  "; ignored");
    }
  } else if (source.find("profile", text, origin)) {
    const std::string fault = read_profile(text, settings);
    if (!fault.empty()) source.warn(origin + ": " + fault);
  }
}

}  // namespace

bool parse_layers(const std::string& text, std::vector<int32_t>& layers) {
  std::vector<int32_t> list;
  const char* at = text.c_str();
  const auto read = [&at](int32_t& value) {
    if (!std::isdigit(static_cast<unsigned char>(*at))) return false;
    char* end = nullptr;
    const int64_t parsed = std::strtoll(at, &end, 10);
    at = end;
    value = static_cast<int32_t>(std::min<int64_t>(parsed, kMaxLayers));
    return parsed < kMaxLayers;
  };
  while (true) {
    int32_t first = 0;
    if (!read(first)) return false;
    int32_t last = first;
    if (*at == '-' && (++at, !read(last))) return false;
    if (last < first) return false;
    for (int32_t layer = first; layer <= last; ++layer) list.push_back(layer);
    if (*at == '\0') break;
    if (*at++ != ',') return false;
  }
  std::sort(list.begin(), list.end());
  list.erase(std::unique(list.begin(), list.end()), list.end());
  layers = list;
  return true;
}

Settings read_settings(const Environment& environment) {
  Settings settings;
  tsp_prefill_params_t& op = settings.op;
  tsp_prefill_params_init(&op, sizeof op);
  op.coverage = 0;
  Source source(environment, settings.warnings);
  source.read_number("coverage", op.coverage, 0, 0.9999999);
  source.read_number("keep", op.keep, 0, 1);
  source.read_number("window", op.window, 1, 1 << 20);
  source.read_number("min_tokens", op.min_tokens, 0, 1 << 30);
  source.read_number("band", op.band, 1, 1 << 30);
  int32_t pool = op.pool;
  source.read_number("pool", pool, 1, 1023);
  std::string text, origin;
  if (pool % 2 == 1) {
    op.pool = pool;
  } else if (source.find("pool", text, origin)) {
    source.warn(origin + " must be odd, got " + text + "; using " + std::to_string(op.pool));
  }
  source.read_choice("share", op.share, {"head", "kv_group", "layer"});
  source.read_choice("dropped", op.dropped, {"zero", "local"});
  constexpr int32_t kAuto = 2;
  int32_t precision = kAuto;
  source.read_choice("precision", precision, {"f32", "bf16", "auto"});
  settings.auto_precision = precision == kAuto;
  if (precision != kAuto) op.precision = precision;
  source.read_number("threads", settings.threads, 0, 1024);
  source.read_number("min_rows", settings.min_rows, 2, 1 << 20);
  source.read_number("min_keys", settings.min_keys, 0, 1 << 30);
  int64_t mebibytes = static_cast<int64_t>(settings.memory_bytes >> 20);
  source.read_number("memory", mebibytes, 1, 1 << 20);
  settings.memory_bytes = static_cast<size_t>(mebibytes) << 20;
  source.read_switch("disable", settings.disabled);
  source.read_switch("verify", settings.verify);
  source.read_switch("summary", settings.summary);
  read_layers(source, settings);
  source.read_choice("linear", settings.linear, {"ggml", "onednn", "int8"});
  if (settings.sparse() && settings.sparse_layers.empty() && !settings.all_layers_sparse) {
    source.warn(
        "sparse attention needs to know its layers: set TOKENSPARSE_PROFILE to a file that "
        "`tokensparse profile` made, or TOKENSPARSE_SPARSE_LAYERS; attention stays exact");
    op.coverage = op.keep = 0;
  }
  return settings;
}

std::string describe(const Settings& settings) {
  std::string text = "exact attention";
  if (settings.sparse()) {
    text = settings.op.keep > 0 ? "sparse attention, keep " + number(settings.op.keep)
                                : "sparse attention, coverage " + number(settings.op.coverage);
    static constexpr const char* kShares[] = {"head", "kv_group", "layer"};
    text += std::string(", share ") + kShares[settings.op.share] + ", ";
    text += settings.all_layers_sparse ? "all layers"
                                       : std::to_string(settings.sparse_layers.size()) + " layers";
  }
  if (settings.op.precision == TSP_PRECISION_BF16) text += ", bf16";
  if (settings.linear == Settings::kOneDnn) text += ", linear layers by oneDNN";
  if (settings.linear == Settings::kInt8) text += ", linear layers in int8";
  text += " for " + std::to_string(settings.min_rows) + " query rows and more";
  if (settings.threads > 0) text += ", " + std::to_string(settings.threads) + " threads";
  if (settings.verify) text += ", verified against ggml";
  return text;
}

}  // namespace tsp::ggml_plugin
