// SPDX-License-Identifier: MIT
// Options that several verbs share: how the operator chooses tokens, and where it runs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "adapters/ggml/setting.h"
#include "tokensparse/tokensparse.hpp"

namespace CLI {
class App;
class Option;
class Validator;
}  // namespace CLI

namespace tsp::cli {

/// Declares --coverage, --keep, --window, --pool, --min-tokens, --share, --dropped, --sink, --band
/// and --precision, bound to the fields of `params`, which holds the defaults that --help shows.
/// The rules are those of a setting.
void add_operator_options(CLI::App& app, tsp_prefill_params_t& params);

/// Declares --blocks.
void add_blocks_option(CLI::App& app, tsp_pattern_t& pattern);

/// Declares --setting, then all that changes it: --layers, the options above, --blocks, --min-keys,
/// --min-rows and a --precision that may be auto. At first `setting` is the recommended one.
void add_setting_options(CLI::App& app, ggml_adapter::Setting& setting);

/// An option that takes one of `names`; `value` becomes the position of the name in the list.
CLI::Option* add_choice(CLI::App& app, const std::string& flag, int32_t& value,
                        const std::vector<std::string>& names, const std::string& description);

/// Accepts these; the message lists them.
CLI::Validator one_of(const std::vector<std::string>& names);

/// Accepts numbers with low <= x <= high (NaN is not one); the rule is part of the message.
CLI::Validator between(double low, double high);

struct BackendOptions {
  int32_t backend = TSP_BACKEND_CPU;
  std::string isa;  // empty: the best one of this machine
  int32_t threads = 0;
};
/// Declares --backend, --isa and --threads; `cuda`: where the verb can run on a GPU.
void add_backend_options(CLI::App& app, BackendOptions& options, bool cuda = false);

/// Throws Failure where the machine or the build lacks what was asked for.
tokensparse::Context open_context(const BackendOptions& options);

/// Throws Failure with the library's sentence, behind `where`, unless the status is TSP_OK.
void check(const tokensparse::Status& status, const std::string& where = "");

}  // namespace tsp::cli
