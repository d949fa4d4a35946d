// SPDX-License-Identifier: MIT
// Options of the verbs that run a model under settings.
#pragma once

#include <cstdint>
#include <string>

#include "cli/llama/model_run.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace tsp::cli {

/// Declares --ctx, --ubatch, --isa and --threads. `threads` is what was asked for, 0 = all.
void add_run_conditions(CLI::App& app, RunConditions& conditions, int32_t& threads);

/// Declares --chat-template.
CLI::Option* add_chat_template(CLI::App& app, std::string& chat_template);

}  // namespace tsp::cli
