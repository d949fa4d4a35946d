// SPDX-License-Identifier: MIT
#include "adapters/ggml/setting.h"

#include <cmath>
#include <cstdlib>

namespace tsp::ggml_adapter {
namespace {

constexpr double kMostTokens = 1 << 30;

#define TSP_INTEGER(field) [](Setting& setting) { return &setting.field; }, nullptr
#define TSP_REAL(field) nullptr, [](Setting& setting) { return &setting.field; }

}  // namespace

// The built-in setting. Left-out queries that see sinks and a band are what lets every layer but
// the ends be sparse, at 20 times the paper's coverage. Qwen2.5-Coder-0.5B-Instruct through `eval`,
// four needles in 7,750 tokens, chunks of 2,048: all four answered; loss of the answers .0976 .0439
// .0726 .0166 where exact attention has .0889 .0452 .0683 .0151, with 31 % of the query-key pairs;
// coverage .05 computes 43 % and is no nearer (2 cores AMD EPYC Zen 5, 2026-11-27).
//
// min_keys and min_rows: keeping 95 % of the tokens (D 64, 14/2 heads, bf16, same machine,
// 2026-11-25) is as fast as attending to all from 4,096 keys up and 6 % slower at 2,048; in chunks,
// which all pay for their own scores, it is 2 % slower with 1,024 query rows and 10 % slower with
// 512.
Setting::Setting() {
  tsp_prefill_params_init(&op, sizeof op);
  op.coverage = 0.1f;
  op.share = TSP_SHARE_KV_GROUP;
  op.dropped = TSP_DROPPED_LOCAL;
  op.sink = 64;
  op.band = 256;
  min_keys = 4096;
  min_rows = 1024;
}

Setting exact(Setting setting) {
  setting.op.coverage = setting.op.keep = 0;
  setting.op.pattern = {};
  return setting;
}

void settle_precision(Setting& setting, bool linear_rounds, bool machine_can) {
  const bool bf16 = setting.precision == Precision::kAuto ? linear_rounds && machine_can
                                                          : setting.precision == Precision::kBf16;
  setting.op.precision = bf16 ? TSP_PRECISION_BF16 : TSP_PRECISION_F32;
}

const std::array<NumberRule, 11>& number_rules() {
  static const std::array<NumberRule, 11> rules{{
      {"coverage", 0, 0.9999999, TSP_REAL(op.coverage)},
      {"keep", 0, 1, TSP_REAL(op.keep)},
      {"window", 1, 1 << 20, TSP_INTEGER(op.window)},
      {"pool", 1, 1023, TSP_INTEGER(op.pool), true},
      {"min_tokens", 0, kMostTokens, TSP_INTEGER(op.min_tokens)},
      {"sink", 0, kMostTokens, TSP_INTEGER(op.sink)},
      {"band", 1, kMostTokens, TSP_INTEGER(op.band)},
      {"min_keys", 0, kMostTokens, TSP_INTEGER(min_keys)},
      {"min_rows", 2, 1 << 20, TSP_INTEGER(min_rows)},
      {"long_keys", 0, kMostTokens, TSP_INTEGER(long_keys)},
      {"long_coverage", 0, 0.9999999, TSP_REAL(long_coverage)},
  }};
  return rules;
}

#undef TSP_INTEGER
#undef TSP_REAL

const NumberRule& number_rule(const std::string& key) {
  for (const NumberRule& rule : number_rules()) {
    if (key == rule.key) return rule;
  }
  std::abort();
}

double NumberRule::get(const Setting& setting) const {
  auto& fields = const_cast<Setting&>(setting);  // the accessors serve both
  return integer != nullptr ? *integer(fields) : double{*real(fields)};
}

std::string NumberRule::rule() const {
  const char* kind = integer == nullptr ? "a number" : odd ? "an odd integer" : "an integer";
  return std::string("must be ") + kind + " between " + number_text(low) + " and " +
         number_text(high);
}

std::string NumberRule::set(Setting& setting, double value) const {
  const bool whole = value == std::floor(value);
  if (!(value >= low && value <= high) || (integer != nullptr && !whole)) return rule();
  if (odd && std::fmod(value, 2) != 1) return rule();
  if (integer != nullptr) {
    *integer(setting) = static_cast<int32_t>(value);
  } else {
    *real(setting) = static_cast<float>(value);
  }
  return "";
}

const std::array<WordRule, 3>& word_rules() {
  static const std::array<WordRule, 3> rules{{
      {"share",
       {"head", "kv_group", "layer"},
       [](const Setting& setting) { return int{setting.op.share}; },
       [](Setting& setting, int word) { setting.op.share = word; }},
      {"dropped",
       {"zero", "local", nullptr},
       [](const Setting& setting) { return int{setting.op.dropped}; },
       [](Setting& setting, int word) { setting.op.dropped = word; }},
      {"precision",
       {"auto", "f32", "bf16"},
       [](const Setting& setting) { return static_cast<int>(setting.precision); },
       [](Setting& setting, int word) { setting.precision = static_cast<Precision>(word); }},
  }};
  return rules;
}

const char* WordRule::word(const Setting& setting) const {
  return words[static_cast<size_t>(get(setting))];
}

std::string WordRule::set(Setting& setting, const std::string& word) const {
  std::string list;
  for (size_t i = 0; i < words.size() && words[i] != nullptr; ++i) {
    if (word == words[i]) {
      put(setting, static_cast<int>(i));
      return "";
    }
    list += (list.empty() ? "" : ", ") + std::string(words[i]);
  }
  return "must be one of " + list;
}

std::string contradiction(const Setting& setting) {
  const tsp_pattern_t& blocks = setting.op.pattern;
  if (!setting.chooses_blocks() || !setting.chooses_tokens() || blocks.share <= setting.op.share) {
    return "";
  }
  const WordRule& share = word_rules()[0];
  return std::string("blocks.share must be no wider than share (") + share.word(setting) +
         "), got " + share.words[static_cast<size_t>(blocks.share)];
}

Setting recommended(const Setting& asked, const ModelNumbers& model) {
  if (!asked.recommended) return asked;
  Setting found;
  for (const Setting& measured : measured_settings()) {
    const ModelNumbers& wanted = measured.model;
    if (wanted.num_layers == model.num_layers && wanted.num_heads == model.num_heads &&
        wanted.num_kv_heads == model.num_kv_heads && wanted.head_dim == model.head_dim) {
      found = measured;
      break;
    }
  }
  for (const std::string& key : asked.given) {
    if (key == "layers") found.layers = asked.layers;
    if (key == "blocks") found.op.pattern = asked.op.pattern;
    for (const NumberRule& rule : number_rules()) {
      if (key == rule.key) (void)rule.set(found, rule.get(asked));
    }
    for (const WordRule& rule : word_rules()) {
      if (key == rule.key) rule.put(found, rule.get(asked));
    }
  }
  found.given = asked.given;
  return found;
}

std::string contradiction(const ModelNumbers& setting, const ModelNumbers& model) {
  const struct {
    const char* key;
    int32_t wanted, found;
  } numbers[] = {{"num_layers", setting.num_layers, model.num_layers},
                 {"num_heads", setting.num_heads, model.num_heads},
                 {"num_kv_heads", setting.num_kv_heads, model.num_kv_heads},
                 {"head_dim", setting.head_dim, model.head_dim}};
  for (const auto& number : numbers) {
    if (number.wanted == 0 || number.found == 0 || number.wanted == number.found) continue;
    return "is for " + (setting.name.empty() ? "a model" : setting.name) + " with " + number.key +
           " " + std::to_string(number.wanted) + ", this model has " + std::to_string(number.found);
  }
  return "";
}

}  // namespace tsp::ggml_adapter
