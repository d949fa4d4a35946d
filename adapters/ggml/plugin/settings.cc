// SPDX-License-Identifier: MIT
#include "adapters/ggml/plugin/settings.h"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <map>
#include <sstream>

namespace tsp::ggml_plugin {
namespace {

using ggml_adapter::number_text;
using ggml_adapter::NumberRule;
using ggml_adapter::Setting;
using ggml_adapter::WordRule;

constexpr const char* kPrefix = "TOKENSPARSE_";
// Beside the keys of a setting; `sparse_layers` is the older name of `layers`.
constexpr const char* kNames[] = {"setting", "profile", "layers", "sparse_layers", "blocks",
                                  "threads", "linear",  "memory", "serve_rows",    "disable",
                                  "verify",  "summary", "verbose"};
// Variables that other parts of the project read.
constexpr const char* kOthers[] = {"config", "onednn_library", "library",     "backend",
                                   "cache",  "model",          "plugin",      "program",
                                   "isa",    "jobs",           "peer_python", "llama_cpp_dir"};

std::string trim(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t\r");
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

template <typename List>
bool holds(const List& list, const std::string& name) {
  return std::find(std::begin(list), std::end(list), name) != std::end(list);
}

bool is_name(const std::string& name) {
  const auto has_key = [&](const auto& rule) { return name == rule.key; };
  const auto& numbers = ggml_adapter::number_rules();
  const auto& words = ggml_adapter::word_rules();
  return holds(kNames, name) || std::any_of(numbers.begin(), numbers.end(), has_key) ||
         std::any_of(words.begin(), words.end(), has_key);
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
    std::string variable = kPrefix + name;
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

  /// Whether the value that there is was taken; true also where there is none.
  bool read_number(const NumberRule& rule, Setting& setting) {
    std::string text, origin;
    if (!find(rule.key, text, origin)) return true;
    double value = 0;
    const bool number = ggml_adapter::parse_number(text, value);
    const std::string broken = number ? rule.set(setting, value) : rule.rule();
    const bool asks = rule.real != nullptr;  // for sparsity: coverage, keep, long_coverage
    return broken.empty() || refuse(origin + " " + broken + ", got " + text,
                                    asks ? "exact attention" : number_text(rule.get(setting)));
  }

  bool read_word(const WordRule& rule, Setting& setting) {
    std::string text, origin;
    if (!find(rule.key, text, origin)) return true;
    const std::string broken = rule.set(setting, text);
    return broken.empty() || refuse(origin + " " + broken + ", got " + text, rule.word(setting));
  }

  void read_integer(const char* name, int32_t& value, int32_t low, int32_t high) {
    std::string text, origin;
    if (!find(name, text, origin)) return;
    double parsed = 0;
    if (!ggml_adapter::parse_number(text, parsed) || !(parsed >= low && parsed <= high) ||
        parsed != static_cast<int32_t>(parsed)) {
      refuse(origin + " must be an integer between " + std::to_string(low) + " and " +
                 std::to_string(high) + ", got " + text,
             std::to_string(value));
      return;
    }
    value = static_cast<int32_t>(parsed);
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
    refuse(origin + " must be one of " + list + ", got " + text, names[static_cast<size_t>(value)]);
  }

  void read_switch(const char* name, bool& value) {
    int32_t chosen = value ? 1 : 0;
    read_choice(name, chosen, {"0", "1"});
    value = chosen != 0;
  }

  /// Always false.
  bool refuse(const std::string& sentence, const std::string& instead) {
    warn(sentence + "; using " + instead);
    return false;
  }
  void warn(const std::string& sentence) { warnings_.push_back(sentence); }

 private:
  void read_file() {
    const char* path = environment_("TOKENSPARSE_CONFIG");
    if (path == nullptr || *path == '\0') return;
    path_ = path;
    std::string text;
    if (!ggml_adapter::read_small_file(path_, text)) {
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
      if (equals == std::string::npos || !is_name(name)) {
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

/// Whether what there is was taken.
bool read_layers(Source& source, Setting& setting) {
  std::string text, origin;
  if (source.find("layers", text, origin) || source.find("sparse_layers", text, origin)) {
    const std::string broken = ggml_adapter::parse_layers(text, setting.layers);
    return broken.empty() || source.refuse(origin + " " + broken, "none");
  }
  if (!source.find("profile", text, origin)) return true;
  Setting profile;
  const std::string fault = ggml_adapter::read_setting(text, profile);
  if (!fault.empty()) return source.refuse(origin + ": " + fault, "no layers");
  setting.layers = profile.layers;
  setting.model = profile.model;
  return true;
}

/// Sparse where a name asks for it; exact where what asks for it is not understood.
Setting read_setting(Source& source) {
  Setting setting;
  std::string text, origin;
  bool asked = false, understood = true;
  for (const char* name :
       {"setting", "coverage", "keep", "blocks", "layers", "sparse_layers", "profile"}) {
    asked = asked || source.find(name, text, origin);
  }
  if (source.find("setting", text, origin)) {
    const std::string fault = ggml_adapter::read_setting(text, setting);
    if (!fault.empty()) understood = source.refuse(origin + ": " + fault, "exact attention");
  }
  understood = read_layers(source, setting) && understood;
  for (const char* name : {"layers", "sparse_layers", "profile"}) {
    if (source.find(name, text, origin)) setting.given.emplace_back("layers");
  }
  for (const NumberRule& rule : ggml_adapter::number_rules()) {
    const bool taken = source.read_number(rule, setting);
    if (taken && source.find(rule.key, text, origin)) setting.given.emplace_back(rule.key);
    const bool asks = rule.real != nullptr;
    understood = understood && (taken || !asks);
  }
  for (const WordRule& rule : ggml_adapter::word_rules()) {
    const bool taken = source.read_word(rule, setting);
    if (taken && source.find(rule.key, text, origin)) setting.given.emplace_back(rule.key);
  }
  if (source.find("blocks", text, origin)) {
    setting.given.emplace_back("blocks");
    const std::string broken = ggml_adapter::parse_blocks(text, setting.op.pattern);
    if (!broken.empty()) understood = source.refuse(origin + ": " + broken, "exact attention");
  }
  const std::string broken = contradiction(setting);
  if (!broken.empty()) understood = source.refuse(broken, "exact attention");
  return asked && understood ? setting : exact(setting);
}

void read_summary(Source& source, Settings& settings) {
  std::string text, origin;
  if (!source.find("summary", text, origin) || text == "1") return;
  if (text == "0") {
    settings.summary = false;
  } else if (text.ends_with(".json")) {
    settings.summary_file = text;
  } else {
    source.refuse(origin + " must be 0, 1 or a file that ends in .json, got " + text, "1");
  }
}

void warn_of_unknown(Source& source, const std::vector<std::string>& names) {
  for (const std::string& variable : names) {
    if (!variable.starts_with(kPrefix)) continue;
    std::string name = variable.substr(std::string(kPrefix).size());
    for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    if (!is_name(name) && !holds(kOthers, name)) {
      source.warn("there is no setting named " + variable + "; it does nothing");
    }
  }
}

}  // namespace

std::vector<std::string> environment_names() {
  std::vector<std::string> names;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string text = *entry;
    names.push_back(text.substr(0, text.find('=')));
  }
  return names;
}

Settings read_settings(const Environment& environment, const std::vector<std::string>& names) {
  Settings settings;
  Source source(environment, settings.warnings);
  warn_of_unknown(source, names);
  settings.setting = read_setting(source);
  source.read_integer("threads", settings.threads, 0, 1024);
  source.read_integer("serve_rows", settings.serve_rows, 2, 1 << 20);
  int32_t mebibytes = static_cast<int32_t>(settings.memory_bytes >> 20);
  source.read_integer("memory", mebibytes, 1, 1 << 20);
  settings.memory_bytes = static_cast<size_t>(mebibytes) << 20;
  source.read_switch("disable", settings.disabled);
  source.read_switch("verify", settings.verify);
  read_summary(source, settings);
  source.read_integer("verbose", settings.verbose, 0, 2);
  source.read_choice("linear", settings.linear, {"ggml", "onednn", "int8", "auto", "bf16"});
  return settings;
}

std::string describe(const Settings& settings) {
  const Setting& setting = settings.setting;
  std::string text = "exact attention";
  if (setting.sparse()) {
    text = setting.recommended ? "as measured on the model, else sparse attention"
                               : "sparse attention";
    if (!setting.name.empty()) text += " as in " + setting.name;
    text += setting.op.keep > 0        ? ", keep " + number_text(setting.op.keep)
            : setting.chooses_tokens() ? ", coverage " + number_text(setting.op.coverage)
                                       : ", every token";
    if (setting.long_keys > 0) {
      text += " (" + number_text(setting.long_coverage) + " from " +
              std::to_string(setting.long_keys) + " keys up)";
    }
    if (setting.chooses_blocks()) {
      text += ", blocks " + ggml_adapter::blocks_text(setting.op.pattern);
    }
    for (const WordRule& rule : ggml_adapter::word_rules()) {
      if (std::string(rule.key) != "precision") {
        text += std::string(", ") + rule.key + " " + rule.word(setting);
      }
    }
    if (setting.op.dropped == TSP_DROPPED_LOCAL) {
      text += " (sink " + std::to_string(setting.op.sink) + ", band " +
              std::to_string(setting.op.band) + ")";
    }
    text += ", layers " + setting.layers.text() + ", from " + std::to_string(setting.min_keys) +
            " keys and " + std::to_string(setting.min_rows) + " query rows up";
  }
  if (setting.precision == ggml_adapter::Precision::kBf16) text += ", bf16";
  if (settings.linear == Settings::kOneDnn) text += ", linear layers by oneDNN";
  if (settings.linear == Settings::kBf16) text += ", linear layers in bf16";
  if (settings.linear == Settings::kInt8) text += ", linear layers in int8";
  if (settings.linear == Settings::kAutoLinear) text += ", linear layers in int8 where possible";
  text += "; for " + std::to_string(settings.serve_rows) + " query rows and more";
  if (settings.threads > 0) text += ", " + std::to_string(settings.threads) + " threads";
  if (settings.verify) text += ", verified against ggml";
  return text;
}

}  // namespace tsp::ggml_plugin
