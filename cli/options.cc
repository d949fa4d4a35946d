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

constexpr int64_t kMaxTokens = int64_t{1} << 30;

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
  const auto one_of = [names](const std::string& name) {
    if (std::find(names.begin(), names.end(), name) != names.end()) return std::string();
    return "must be one of " + join(names, ", ") + ", got " + name;
  };
  option->check(CLI::Validator(one_of, ""));
  option->type_name(join(names, "|"))->default_str(names.at(static_cast<size_t>(value)));
  return option;
}

CLI::Validator between(double low, double high) {
  const std::string rule = "must be between " + shortest(low) + " and " + shortest(high);
  return CLI::Validator(
      [low, high, rule](const std::string& text) {
        char* end = nullptr;
        const double value = std::strtod(text.c_str(), &end);
        const bool number = end != text.c_str() && *end == '\0';
        return number && value >= low && value <= high ? std::string() : rule + ", got " + text;
      },
      "");
}

void add_operator_options(CLI::App& app, tsp_prefill_params_t& params) {
  const auto add = [&](const char* flag, auto& value, double low, double high,
                       const std::string& description) {
    app.add_option(flag, value, description)
        ->check(between(low, high))
        ->default_str(shortest(static_cast<double>(value)))
        ->group("Choosing tokens");
  };
  add("--coverage", params.coverage, 0, 0.9999999,
      "Share of the attention mass that may be dropped. 0 drops nothing: exact attention");
  add("--keep", params.keep, 0, 1,
      "Keep this share of the tokens, whatever their mass; 0 decides by --coverage");
  add("--window", params.window, 1, 1 << 20, "The last queries: they vote, and are always kept");
  add("--pool", params.pool, 1, 1023, "Width of the average over neighbouring tokens, odd");
  add("--min-tokens", params.min_tokens, 0, kMaxTokens,
      "Tokens before the window that are kept in any case");
  add_choice(app, "--share", params.share, {"head", "kv_group", "layer"},
             "Who chooses: each query head, the heads of a KV head together, or all together")
      ->group("Choosing tokens");
  add_choice(app, "--dropped", params.dropped, {"zero", "local"},
             "Output of a query that was left out: zeros, or attention over the first --sink and "
             "its last --band keys")
      ->group("Choosing tokens");
  add("--sink", params.sink, 0, kMaxTokens, "First keys that --dropped local attends to");
  add("--band", params.band, 1, kMaxTokens, "Last keys that --dropped local attends to");
  add_choice(app, "--precision", params.precision, {"f32", "bf16"},
             "Arithmetic of the products; bf16 costs about 3e-3 relative error")
      ->group("Where it runs");
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
