// SPDX-License-Identifier: MIT
#include "cli/usage_error.h"

#include <vector>

namespace tsp::cli {
namespace {

/// "--threads", from "Could not convert: --threads = 1.5"; and "1.5".
std::string unconverted(const std::string& text) {
  const std::string::size_type colon = text.find(": "), equals = text.find(" = ");
  if (colon == std::string::npos || equals == std::string::npos || equals < colon) return text;
  return text.substr(colon + 2, equals - colon - 2) + ": must be an integer, got " +
         text.substr(equals + 3);
}

/// "bench attend".
std::string path_of(const CLI::App& verb) {
  const CLI::App* parent = verb.get_parent();
  const bool nested = parent != nullptr && parent->get_parent() != nullptr;
  return (nested ? path_of(*parent) + " " : "") + verb.get_name();
}

std::string unexpected(const CLI::App& verb) {
  std::vector<std::string> words;  // CLI11 leaves them with the program, not with the verb
  for (const CLI::App* app = &verb; app != nullptr; app = app->get_parent()) {
    const std::vector<std::string> more = app->remaining();
    words.insert(words.end(), more.begin(), more.end());
  }
  for (const std::string& word : words) {
    const std::string help = "; `tokensparse " + path_of(verb) + " --help` lists ";
    if (word.size() > 1 && word[0] == '-') {
      return "no option " + word.substr(0, word.find('=')) + help + "them";
    }
    return word + " is one argument too many" + help + "what there is";
  }
  return "";
}

}  // namespace

std::string usage_sentence(const CLI::ParseError& error, const CLI::App& verb) {
  const std::string text = error.what();
  // CLI11 gives its ExtrasError the program's name.
  const bool extras = dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr;
  if (extras || error.get_name() == "RequiredError") {
    // A misspelt option is named before what it may have stood for.
    const std::string extra = unexpected(verb);
    if (!extra.empty()) return extra;
  }
  if (error.get_name() == "ConversionError") return unconverted(text);
  if (error.get_name() == "ArgumentMismatch") {
    const std::string option = text.substr(0, text.find(':'));
    const bool missing = text.find("missing") != std::string::npos;
    return option + (missing ? ": needs a value" : ": must be given once");
  }
  return text;
}

}  // namespace tsp::cli
