// SPDX-License-Identifier: MIT
// How a model is run sparsely: which layers, which tokens, and when. One schema for the program,
// the plugin and the Python package; as a file it is JSON, {"format": "tokensparse setting 1",
// "coverage": 0.1, ...}, with the keys of the tables below.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "adapters/ggml/block_choice.h"
#include "adapters/ggml/layer_choice.h"
#include "adapters/ggml/number_text.h"
#include "tokensparse/tokensparse.h"

namespace tsp::ggml_adapter {

enum class Precision { kAuto, kF32, kBf16 };

/// Of the model that a setting was made for; 0 and "" where it does not say.
struct ModelNumbers {
  std::string name;
  int32_t num_layers = 0;
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  int64_t file_bytes = 0;  // in profiles alone; other files of the same model have others
};

/// The built-in setting is one that nothing was changed in.
struct Setting {
  Setting();

  std::string name;
  ModelNumbers model;
  LayerChoice layers;
  /// Coverage, share, ..., and in `pattern` the blocks; tensors and workspace are not part of a
  /// setting. `precision` of it is what `precision` below came to on a machine.
  tsp_prefill_params_t op;
  Precision precision = Precision::kAuto;
  /// Of a call, below which its sparse layers attend exactly: choosing would not pay.
  int32_t min_keys;
  int32_t min_rows;
  /// Calls with at least so many keys may leave out this share of the mass instead of `coverage`:
  /// what a short prompt can spare may be too much of a long one. 0: none are.
  int32_t long_keys = 0;
  float long_coverage = 0;
  /// Not these, but what was measured on the model, once it is known: recommended() says.
  bool recommended = false;
  std::vector<std::string> given;  // keys that were given by name, and outlast what is recommended

  bool chooses_tokens() const { return op.coverage > 0 || op.keep > 0; }
  bool chooses_blocks() const { return op.pattern.kind != TSP_PATTERN_NONE; }
  bool sparse() const {
    return (chooses_tokens() || chooses_blocks()) && layers.kind != LayerChoice::Kind::kNone;
  }
  float coverage_of(int64_t keys) const {
    return long_keys > 0 && keys >= long_keys ? long_coverage : op.coverage;
  }
};

/// Empty, or how its keys contradict each other: lists of blocks that heads share whose tokens they
/// do not.
std::string contradiction(const Setting& setting);

/// The same setting without any sparsity.
Setting exact(Setting setting = {});

/// Precision::kAuto rounds for attention where the linear layers do so already and the machine can.
void settle_precision(Setting& setting, bool linear_rounds, bool machine_can);

// ---- the keys and their rules ----

/// A number of a setting: integer or real, low <= x <= high.
struct NumberRule {
  const char* key;
  double low, high;
  int32_t* (*integer)(Setting&);  // null: a real one
  float* (*real)(Setting&);
  bool odd = false;

  double get(const Setting& setting) const;
  /// Empty and set; or the rule that `value` breaks, "must be an integer between 0 and 64".
  std::string set(Setting& setting, double value) const;
  std::string rule() const;
};
const std::array<NumberRule, 11>& number_rules();
/// The rule of a key; terminates where there is none.
const NumberRule& number_rule(const std::string& key);

/// A word of a setting: one of `words`.
struct WordRule {
  const char* key;
  std::array<const char*, 3> words;  // the last may be null
  int (*get)(const Setting&);        // position of the word
  void (*put)(Setting&, int);

  const char* word(const Setting& setting) const;
  /// Empty and set; or the rule, "must be one of zero, local".
  std::string set(Setting& setting, const std::string& word) const;
};
const std::array<WordRule, 3>& word_rules();

// ---- files ----

// Instead of a file's name.
inline constexpr const char* kBuiltIn = "built-in";
inline constexpr const char* kRecommended = "recommended";

/// Reads a setting file, or a layer profile, which gives the layers alone. Empty, or one sentence
/// that names file, key, rule and value; `setting` is then as it was. kBuiltIn is no file but the
/// built-in setting, and kRecommended that one until the model is known.
std::string read_setting(const std::string& path, Setting& setting);
/// The same from the text of a file; `file` is what the sentence calls it.
std::string parse_setting(const std::string& text, const std::string& file, Setting& setting);

/// False where it is missing, not readable, not a file, or larger than any setting.
bool read_small_file(const std::string& path, std::string& text);

/// The settings that were measured: the files of the folder settings, which are built in.
const std::vector<Setting>& measured_settings();
/// What a setting that is `recommended` comes to: the one measured on a model with all four of
/// these numbers, else the built-in one, in which what was given stays. Others stay as they are.
Setting recommended(const Setting& asked, const ModelNumbers& model);

/// Empty, or how the numbers of two models contradict each other: "is for a model with num_layers
/// 28, this one has 24". Numbers that one side does not know do not.
std::string contradiction(const ModelNumbers& setting, const ModelNumbers& model);

}  // namespace tsp::ggml_adapter
