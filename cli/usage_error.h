// SPDX-License-Identifier: MIT
// What is wrong with a command line, said as every other error of the program is: option, rule,
// value.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace tsp::cli {

/// `verb` is the one that was being read.
std::string usage_sentence(const CLI::ParseError& error, const CLI::App& verb);

}  // namespace tsp::cli
