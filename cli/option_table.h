// SPDX-License-Identifier: MIT
// What the command line takes, read off the verbs' own declarations: the manual page and the
// shells' completions are made of it, so they cannot say anything else than --help does.
#pragma once

#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace tsp::cli {

struct OptionEntry {
  std::vector<std::string> flags;  // "-m", "--model"; empty for a positional
  std::string name;                // of a positional
  std::string value;               // "FILE", "head|layer"; empty for a flag
  std::vector<std::string> choices;
  std::string description;
  std::string fallback;  // the default as --help shows it
  std::string group;
  bool required = false;
};

struct VerbEntry {
  std::string name;  // "bench attend" for a verb of a verb; empty for the program itself
  std::string description;
  std::vector<OptionEntry> options;
  std::vector<std::string> verbs;  // of its own
};

/// The program, then its verbs in the order of --help, each followed by its own.
std::vector<VerbEntry> option_table(const CLI::App& app);

/// The manual page, section 1, in man's macros.
std::string manual_page(const CLI::App& app);

/// The names that completion_script() takes.
const std::vector<std::string>& shells();
std::string completion_script(const CLI::App& app, const std::string& shell);

/// "the text's 'own'" as one word of sh.
std::string shell_quoted(const std::string& text);

}  // namespace tsp::cli
