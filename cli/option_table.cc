// SPDX-License-Identifier: MIT
#include "cli/option_table.h"

#include <CLI/CLI.hpp>

namespace tsp::cli {
namespace {

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == at) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

/// "head|layer" and "TEXT:{auto,ggml}" name all that is taken; "NAME|FILE|none" does not.
std::vector<std::string> choices_of(const std::string& value) {
  const size_t open = value.find('{');
  if (open != std::string::npos && value.back() == '}') {
    return split(value.substr(open + 1, value.size() - open - 2), ',');
  }
  const bool words = value.find('|') != std::string::npos &&
                     value.find_first_of("ABCDEFGHIJKLMNOPQRSTUVWXYZ") == std::string::npos;
  return words ? split(value, '|') : std::vector<std::string>();
}

OptionEntry entry_of(const CLI::Option& option) {
  OptionEntry entry;
  for (const std::string& name : option.get_snames()) entry.flags.push_back("-" + name);
  for (const std::string& name : option.get_lnames()) entry.flags.push_back("--" + name);
  if (entry.flags.empty()) entry.name = option.get_name();
  if (option.get_items_expected_max() != 0) {  // else a flag
    entry.value = option.get_type_name().empty() ? "VALUE" : option.get_type_name();
  }
  entry.choices = choices_of(entry.value);
  entry.description = option.get_description();
  entry.fallback = option.get_default_str();
  entry.group = option.get_group();
  entry.required = option.get_required();
  return entry;
}

void add_verb(const CLI::App& app, const std::string& name, std::vector<VerbEntry>& table) {
  VerbEntry verb{name, app.get_description(), {}, {}};
  for (const CLI::Option* option : app.get_options()) {
    if (!option->get_group().empty()) verb.options.push_back(entry_of(*option));
  }
  const auto shown = [](const CLI::App* inner) { return !inner->get_group().empty(); };
  for (const CLI::App* inner : app.get_subcommands(shown)) verb.verbs.push_back(inner->get_name());
  table.push_back(std::move(verb));
  for (const CLI::App* inner : app.get_subcommands(shown)) {
    add_verb(*inner, (name.empty() ? "" : name + " ") + inner->get_name(), table);
  }
}

}  // namespace

std::vector<VerbEntry> option_table(const CLI::App& app) {
  std::vector<VerbEntry> table;
  add_verb(app, "", table);
  return table;
}

}  // namespace tsp::cli
