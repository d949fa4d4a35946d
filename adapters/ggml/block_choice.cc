// SPDX-License-Identifier: MIT
#include "adapters/ggml/block_choice.h"

#include <algorithm>
#include <cmath>

#include "adapters/ggml/number_text.h"

namespace tsp::ggml_adapter {
namespace {

constexpr double kMany = 1 << 30;
constexpr unsigned kAll = ~0u;
constexpr unsigned only(tsp_pattern_kind_t kind) { return 1u << kind; }

struct Rule {
  const char* name;
  std::vector<const char*> aliases;
  unsigned kinds;  // that have it
  double low, high;
  int32_t tsp_pattern_t::*integer;  // null: a real one
  float tsp_pattern_t::*real;
  bool above_low = false;  // low is not taken
  int multiple = 1;
};

const std::vector<Rule>& rules() {
  using P = tsp_pattern_t;
  constexpr unsigned kX = only(TSP_PATTERN_XATTENTION), kFlex = only(TSP_PATTERN_FLEXPREFILL),
                     kLines = only(TSP_PATTERN_MINFERENCE), kPooled = only(TSP_PATTERN_POOLED),
                     kFlash = only(TSP_PATTERN_FLASH);
  static const std::vector<Rule> all = {
      {"threshold", {"xattention_threshold"}, kX | kPooled, 0, 1, nullptr, &P::threshold, true},
      {"stride", {"xattention_stride"}, kX, 2, 64, &P::stride, nullptr},
      {"gamma", {}, kFlex, 0, 1, nullptr, &P::gamma, true},
      {"tau", {}, kFlex, 0, 1, nullptr, &P::tau},
      {"min_budget", {}, kFlex, 0, kMany, &P::min_budget, nullptr},
      {"vertical", {"vertical_size"}, kLines, 1, kMany, &P::vertical, nullptr},
      {"slash", {"slash_size"}, kLines, 1, kMany, &P::slash, nullptr},
      {"alpha", {}, kFlash, 0, 1, nullptr, &P::alpha},
      {"block",
       {"block_size", "xattention_block_size"},
       kAll,
       16,
       512,
       &P::block,
       nullptr,
       false,
       16},
      {"sink_blocks", {}, kAll, 0, kMany, &P::sink_blocks, nullptr},
      {"local_blocks", {}, kAll, 0, kMany, &P::local_blocks, nullptr},
      {"last_blocks", {}, kAll, 0, kMany, &P::last_blocks, nullptr},
  };
  return all;
}

const std::vector<std::string> kShares = {"head", "kv_group", "layer"};

std::string join(const std::vector<std::string>& names) {
  std::string list;
  for (const std::string& name : names) list += (list.empty() ? "" : ", ") + name;
  return list;
}

std::string rule_text(const Rule& rule) {
  std::string text = rule.integer != nullptr ? "must be an integer " : "must be a number ";
  const std::string low = number_text(rule.low), high = number_text(rule.high);
  text +=
      rule.above_low ? "above " + low + " and at most " + high : "between " + low + " and " + high;
  if (rule.multiple > 1) text += ", a multiple of " + std::to_string(rule.multiple);
  return text;
}

double value_of(const Rule& rule, const tsp_pattern_t& pattern) {
  return rule.integer != nullptr ? pattern.*rule.integer : double{pattern.*rule.real};
}

/// Whether the value was taken.
bool put(const Rule& rule, const std::optional<double>& number, tsp_pattern_t& pattern) {
  if (!number || !(*number >= rule.low && *number <= rule.high)) return false;
  if (rule.above_low && *number == rule.low) return false;
  if (rule.integer != nullptr) {
    if (std::fmod(*number, rule.multiple) != 0) return false;
    pattern.*rule.integer = static_cast<int32_t>(*number);
  } else {
    pattern.*rule.real = static_cast<float>(*number);
  }
  return true;
}

/// OpenVINO's names begin with the pattern's.
bool has_name(const Rule& rule, const std::string& pattern, const std::string& name) {
  if (name == rule.name) return true;
  return std::any_of(rule.aliases.begin(), rule.aliases.end(), [&](const std::string& alias) {
    return name == alias && (!alias.starts_with("xattention") || pattern == "xattention");
  });
}

std::vector<std::string> parameters_of(int32_t kind) {
  std::vector<std::string> names;
  for (const Rule& rule : rules()) {
    if ((rule.kinds >> kind & 1) != 0) names.push_back(rule.name);
  }
  names.push_back("share");
  return names;
}

/// The name that a parameter counts as; what is wrong with it in `fault`.
std::string set_parameter(const BlockParameter& given, tsp_pattern_t& pattern, std::string& fault) {
  const std::string& kind = pattern_names()[static_cast<size_t>(pattern.kind)];
  const std::string got = ", got " + given.value;
  if (given.name == "share") {
    const auto word = std::find(kShares.begin(), kShares.end(), given.value);
    if (word == kShares.end()) fault = "share must be one of " + join(kShares) + got;
    pattern.share = static_cast<int32_t>(word - kShares.begin());
    return given.name;
  }
  for (const Rule& rule : rules()) {
    if ((rule.kinds >> pattern.kind & 1) == 0 || !has_name(rule, kind, given.name)) continue;
    if (!put(rule, given.number, pattern)) fault = given.name + " " + rule_text(rule) + got;
    return rule.name;
  }
  fault = given.name + " must be a parameter of " + kind + " (" +
          join(parameters_of(pattern.kind)) + ")" + got;
  return given.name;
}

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t");
  return first == std::string::npos ? ""
                                    : text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

}  // namespace

const std::vector<std::string>& pattern_names() {
  static const std::vector<std::string> names = {"none",       "xattention", "flexprefill",
                                                 "minference", "pooled",     "flash"};
  return names;
}

std::string make_blocks(const std::string& name, const std::vector<BlockParameter>& parameters,
                        tsp_pattern_t& pattern) {
  const std::vector<std::string>& names = pattern_names();
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) {
    return "pattern must be one of " + join(names) + ", got " + (name.empty() ? "nothing" : name);
  }
  const auto kind = static_cast<int32_t>(found - names.begin());
  tsp_pattern_t made{};
  if (kind != TSP_PATTERN_NONE) tsp_pattern_init(&made, kind);
  std::vector<std::string> seen;
  for (const BlockParameter& given : parameters) {
    if (kind == TSP_PATTERN_NONE) {
      return given.name + " must not be given with none, got " + given.value;
    }
    std::string fault;
    const std::string known = set_parameter(given, made, fault);
    if (!fault.empty()) return fault;
    if (std::find(seen.begin(), seen.end(), known) != seen.end()) {
      return given.name + " must be given once, got it twice";
    }
    seen.push_back(known);
  }
  if (kind == TSP_PATTERN_XATTENTION && made.block % made.stride != 0) {
    return "stride must divide block (" + std::to_string(made.block) + "), got " +
           std::to_string(made.stride);
  }
  pattern = made;
  return "";
}

std::string parse_blocks(const std::string& text, tsp_pattern_t& pattern) {
  size_t end = std::min(text.find(','), text.size());
  const std::string name = trimmed(text.substr(0, end));
  std::vector<BlockParameter> parameters;
  while (end < text.size()) {
    const size_t begin = end + 1;
    end = std::min(text.find(',', begin), text.size());
    const std::string part = trimmed(text.substr(begin, end - begin));
    const size_t equals = part.find('=');
    if (equals == std::string::npos) {
      return "what follows the pattern must be name=value, got " + part;
    }
    BlockParameter& given = parameters.emplace_back();
    given.name = trimmed(part.substr(0, equals));
    given.value = trimmed(part.substr(equals + 1));
    double number = 0;
    if (parse_number(given.value, number)) given.number = number;
  }
  return make_blocks(name, parameters, pattern);
}

std::vector<BlockParameter> changed_parameters(const tsp_pattern_t& pattern) {
  std::vector<BlockParameter> changed;
  if (pattern.kind == TSP_PATTERN_NONE) return changed;
  tsp_pattern_t own;
  tsp_pattern_init(&own, pattern.kind);
  for (const Rule& rule : rules()) {
    const double value = value_of(rule, pattern);
    if ((rule.kinds >> pattern.kind & 1) == 0 || value == value_of(rule, own)) continue;
    changed.push_back({rule.name, number_text(value), value});
  }
  if (pattern.share != own.share) {
    changed.push_back({"share", kShares[static_cast<size_t>(pattern.share)], std::nullopt});
  }
  return changed;
}

std::string blocks_text(const tsp_pattern_t& pattern) {
  std::string text = pattern_names()[static_cast<size_t>(pattern.kind)];
  for (const BlockParameter& each : changed_parameters(pattern)) {
    text += "," + each.name + "=" + each.value;
  }
  return text;
}

}  // namespace tsp::ggml_adapter
