// SPDX-License-Identifier: MIT
#include "cli/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "cli/verbs.h"

namespace tsp::cli {
namespace {

using ggml_adapter::NumberRule;
using ggml_adapter::Setting;

std::string join(const std::vector<std::string>& names, const char* between) {
  std::string list;
  for (const std::string& name : names) list += (list.empty() ? "" : between) + name;
  return list;
}

std::string shortest(double value) {
  char text[32];
  const bool whole = value == std::floor(value) && std::fabs(value) < 1e15;
  std::snprintf(text, sizeof text, whole ? "%.0f" : "%.7g", value);
  return text;
}

}  // namespace

CLI::Option* add_choice(CLI::App& app, const std::string& flag, int32_t& value,
                        const std::vector<std::string>& names, const std::string& description) {
  CLI::Option* option = app.add_option_function<std::string>(
      flag,
      [&value, names](const std::string& name) {
        value = static_cast<int32_t>(std::find(names.begin(), names.end(), name) - names.begin());
      },
      description);
  option->check(one_of(names));
  option->type_name(join(names, "|"))->default_str(names.at(static_cast<size_t>(value)));
  return option;
}

CLI::Validator one_of(const std::vector<std::string>& names) {
  return CLI::Validator(
      [names](const std::string& name) {
        if (std::find(names.begin(), names.end(), name) != names.end()) return std::string();
        return "must be one of " + join(names, ", ") + ", got " + name;
      },
      "");
}

CLI::Validator between(double low, double high) {
  const std::string rule = "must be between " + shortest(low) + " and " + shortest(high);
  return CLI::Validator(
      [low, high, rule](const std::string& text) {
        double value = 0;
        const bool number = ggml_adapter::parse_number(text, value);
        return number && value >= low && value <= high ? std::string() : rule + ", got " + text;
      },
      "");
}

namespace {

CLI::Validator ruled(const NumberRule& rule) {
  return CLI::Validator(
      [&rule](const std::string& text) {
        double value = 0;
        const bool number = ggml_adapter::parse_number(text, value);
        Setting tried;
        const std::string broken = number ? rule.set(tried, value) : rule.rule();
        return broken.empty() ? broken : broken + ", got " + text;
      },
      "");
}

template <typename T>
CLI::Option* add_ruled(CLI::App& app, const std::string& flag, T& value,
                       const std::string& description) {
  std::string key = flag.substr(2);
  std::replace(key.begin(), key.end(), '-', '_');
  return app.add_option(flag, value, description)
      ->check(ruled(ggml_adapter::number_rule(key)))
      ->default_str(shortest(static_cast<double>(value)))
      ->group("Choosing tokens");
}

}  // namespace

void add_operator_options(CLI::App& app, tsp_prefill_params_t& params) {
  const auto add = [&](const char* flag, auto& value, const char* description) {
    add_ruled(app, flag, value, description);
  };
  add("--coverage", params.coverage,
      "Share of the attention mass that may be dropped. 0 drops nothing: exact attention");
  add("--keep", params.keep,
      "Keep this share of the tokens, whatever their mass; 0 decides by --coverage");
  add("--window", params.window, "The last queries: they vote, and are always kept");
  add("--pool", params.pool, "Width of the average over neighbouring tokens, odd");
  add("--min-tokens", params.min_tokens, "Tokens before the window that are kept in any case");
  add_choice(app, "--share", params.share, {"head", "kv_group", "layer"},
             "Who chooses: each query head, the heads of a KV head together, or all together")
      ->group("Choosing tokens");
  add_choice(app, "--dropped", params.dropped, {"zero", "local"},
             "Output of a query that was left out: zeros, or attention over the first --sink and\n"
             "its last --band keys")
      ->group("Choosing tokens");
  add("--sink", params.sink, "First keys that --dropped local attends to");
  add("--band", params.band, "Last keys that --dropped local attends to");
  add_choice(app, "--precision", params.precision, {"f32", "bf16"},
             "Arithmetic of the products; bf16 costs about 3e-3 relative error")
      ->group("Where it runs");
}

void add_blocks_option(CLI::App& app, tsp_pattern_t& pattern) {
  app.add_option_function<std::string>(
         "--blocks",
         [&pattern](const std::string& text) {
           const std::string broken = ggml_adapter::parse_blocks(text, pattern);
           if (!broken.empty()) throw Failure("--blocks: " + broken, kExitUsage);
         },
         "Attend by the blocks of keys that a published pattern finds for each block of queries,\n"
         "among the tokens that are kept; with --coverage 0 among all. A pattern and what differs\n"
         "from its authors' numbers, like xattention,threshold=0.8,stride=8:\n"
         "  xattention   threshold (0.9), stride (16)\n"
         "  flexprefill  gamma (0.95), tau (0.1), min_budget (1024)\n"
         "  minference   vertical (1000), slash (6096): the vertical-slash pattern\n"
         "  pooled       threshold (0.9): SpargeAttn's estimate\n"
         "  flash        alpha (0.1): FlashPrefill's rule\n"
         "  all          block (128), sink_blocks, local_blocks, last_blocks, share (head)\n"
         "OpenVINO's xattention_threshold, xattention_block_size and xattention_stride are taken")
      ->type_name("PATTERN[,NAME=N...]")
      ->default_str(ggml_adapter::blocks_text(pattern))
      ->group("Choosing tokens");
}

namespace {

/// What is given by name outlasts what is recommended for the model.
void note_given(CLI::App& app, Setting& setting) {
  std::vector<std::string> keys{"layers", "blocks"};
  for (const NumberRule& rule : ggml_adapter::number_rules()) keys.emplace_back(rule.key);
  for (const auto& rule : ggml_adapter::word_rules()) keys.emplace_back(rule.key);
  for (const std::string& key : keys) {
    std::string flag = "--" + key;
    std::replace(flag.begin(), flag.end(), '_', '-');
    app.get_option(flag)->each(
        [&setting, key](const std::string&) { setting.given.push_back(key); });
  }
}

}  // namespace

void add_setting_options(CLI::App& app, Setting& setting) {
  setting.recommended = true;
  // Callbacks run in the order in which options were declared: what follows changes the file's.
  app.add_option_function<std::string>(
         "--setting",
         [&setting](const std::string& path) {
           const std::string fault = ggml_adapter::read_setting(path, setting);
           if (!fault.empty()) throw Failure("--setting: " + fault);
         },
         "A setting file: layers and the options below, which change what it says; built-in for\n"
         "the setting that --help shows the numbers of; recommended for the one that was measured\n"
         "on a model with this one's numbers of layers, heads, KV heads and head_dim, else "
         "built-in")
      ->type_name("FILE|built-in|recommended")
      ->default_str(ggml_adapter::kRecommended);
  app.add_option_function<std::string>(
         "--layers,--sparse-layers",
         [&setting](const std::string& text) {
           const std::string broken = ggml_adapter::parse_layers(text, setting.layers);
           if (!broken.empty()) throw Failure("--layers: " + broken, kExitUsage);
         },
         "Layers that may leave tokens out: middle, which is all but the first and the last; all;\n"
         "none; or a list like 1-22,25. A layer is sparse where it attends to the whole prompt")
      ->type_name("LAYERS")
      ->default_str(setting.layers.text())
      ->group("Choosing tokens");
  add_operator_options(app, setting.op);
  add_blocks_option(app, setting.op.pattern);
  add_ruled(app, "--min-keys", setting.min_keys,
            "Keys below which sparse layers attend exactly; below 4096: choose where no gain is\n"
            "expected, too");
  add_ruled(app, "--min-rows", setting.min_rows,
            "Queries at once below which sparse layers attend exactly");
  add_ruled(app, "--long-keys", setting.long_keys,
            "Keys from which --long-coverage holds instead of --coverage; 0: never");
  add_ruled(app, "--long-coverage", setting.long_coverage, "Coverage of calls with that many keys");
  app.remove_option(app.get_option("--precision"));
  app.add_option_function<std::string>(
         "--precision",
         [&setting](const std::string& word) {
           const std::string broken = ggml_adapter::word_rules()[2].set(setting, word);
           if (!broken.empty()) {
             throw Failure("--precision: " + broken + ", got " + word, kExitUsage);
           }
         },
         "Arithmetic of attention: f32; bf16, twice as fast, about 3e-3 relative error; auto: "
         "bf16\n"
         "where the linear layers are in bf16 (--linear) and the CPU has it")
      ->type_name("auto|f32|bf16")
      ->default_str("auto")
      ->group("Where it runs");
  note_given(app, setting);
}

void add_backend_options(CLI::App& app, BackendOptions& options, bool cuda) {
  std::vector<std::string> names = {"cpu", "ref"};
  if (cuda) names.push_back("cuda");
  add_choice(app, "--backend", options.backend, names,
             std::string("cpu: fast. ref: the specification, scalar double arithmetic, slow") +
                 (cuda ? ". cuda: an NVIDIA GPU, f16 and bf16" : ""))
      ->group("Where it runs");
  app.add_option("--isa", options.isa,
                 "CPU instruction set: scalar, avx2, avx512, avx512_bf16, amx_bf16; the best one "
                 "if not given")
      ->group("Where it runs");
  app.add_option("--threads", options.threads, "CPU threads; 0 = all that this process may use")
      ->check(between(0, 1024))
      ->default_str("0")
      ->group("Where it runs");
}

void check(const tokensparse::Status& status, const std::string& where) {
  if (!status.ok()) throw Failure(where + status.message());
}

tokensparse::Context open_context(const BackendOptions& options) {
  tokensparse::ContextOptions wanted;
  wanted.backend = options.backend;
  wanted.num_threads = options.threads;
  wanted.isa = options.isa.empty() ? nullptr : options.isa.c_str();
  tokensparse::Context context;
  check(tokensparse::Context::create(wanted, &context));
  return context;
}

}  // namespace tsp::cli
