// SPDX-License-Identifier: MIT
// The manual page in the macros of man(7).
#include <CLI/CLI.hpp>

#include "cli/option_table.h"
#include "tokensparse/tokensparse.h"

namespace tsp::cli {
namespace {

/// Text as roff takes it: a hyphen that is one, no escape, no request at the start of a line.
std::string roff(const std::string& text) {
  std::string out;
  for (const char c : text) {
    const bool line_start = out.empty() || out.back() == '\n';
    if (line_start && (c == '.' || c == '\'')) out += "\\&";
    if (c == '\\') {
      out += "\\e";
    } else if (c == '-') {
      out += "\\-";
    } else {
      out += c;
    }
  }
  return out;
}

/// Paragraphs, which an empty line parts.
std::string paragraphs(const std::string& text) {
  std::string out = roff(text);
  for (size_t at = 0; (at = out.find("\n\n", at)) != std::string::npos; at += 4) {
    out.replace(at, 2, "\n.PP\n");
  }
  return out + "\n";
}

std::string head_of(const OptionEntry& option) {
  std::string head;
  for (const std::string& flag : option.flags) {
    head += (head.empty() ? "\\fB" : ", \\fB") + roff(flag) + "\\fR";
  }
  if (option.flags.empty()) head = "\\fI" + roff(option.name) + "\\fR";
  if (!option.value.empty() && !option.flags.empty()) head += " \\fI" + roff(option.value) + "\\fR";
  if (!option.fallback.empty()) head += " [" + roff(option.fallback) + "]";
  return option.required ? head + " (required)" : head;
}

std::string verb_section(const VerbEntry& verb) {
  std::string text = ".SS tokensparse " + roff(verb.name) + "\n" + paragraphs(verb.description);
  std::string group = "Options";
  for (const OptionEntry& option : verb.options) {
    if (option.group != group && !option.flags.empty()) {
      group = option.group;
      text += ".PP\n" + roff(group) + ":\n";
    }
    text += ".TP\n" + head_of(option) + "\n" + roff(option.description) + "\n";
  }
  return text;
}

}  // namespace

std::string manual_page(const CLI::App& app) {
  std::string text = std::string(".TH TOKENSPARSE 1 \"\" \"tokensparse ") + tsp_version() +
                     "\" \"User Commands\"\n.SH NAME\ntokensparse \\- a shorter prefill for long "
                     "prompts\n.SH SYNOPSIS\n";
  const std::vector<VerbEntry> table = option_table(app);
  for (const VerbEntry& verb : table) {
    if (!verb.name.empty() && verb.verbs.empty()) {
      text += "\\fBtokensparse " + roff(verb.name) + "\\fR [\\fIOPTION\\fR]...\n.br\n";
    }
  }
  text += ".SH DESCRIPTION\n" + paragraphs(app.get_description()) + ".SH OPTIONS\n";
  for (const OptionEntry& option : table.front().options) {
    text += ".TP\n" + head_of(option) + "\n" + roff(option.description) + "\n";
  }
  text += ".SH VERBS\n";
  for (size_t i = 1; i < table.size(); ++i) text += verb_section(table[i]);
  return text + ".SH NOTES\n.nf\n" + roff(app.get_footer()) + "\n.fi\n";
}

}  // namespace tsp::cli
