// SPDX-License-Identifier: MIT
// Completion of verbs, options and their choices in bash, zsh and fish; other values are files.
#include <CLI/CLI.hpp>

#include "cli/option_table.h"

namespace tsp::cli {
namespace {

std::string joined(const std::vector<std::string>& words) {
  std::string line;
  for (const std::string& word : words) line += (line.empty() ? "" : " ") + word;
  return line;
}

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

/// The words before the cursor decide: the verb (of the verb), then the option before the word.
std::string bash(const std::vector<VerbEntry>& table) {
  std::string verbs, words, values;
  for (const VerbEntry& verb : table) {
    for (const std::string& inner : verb.verbs) {
      verbs += "      '" + verb.name + ":" + inner + "') verb='" +
               (verb.name.empty() ? "" : verb.name + " ") + inner + "' ;;\n";
    }
    std::vector<std::string> plain = verb.verbs, flags;
    for (const OptionEntry& option : verb.options) {
      flags.insert(flags.end(), option.flags.begin(), option.flags.end());
      if (option.value.empty()) continue;
      if (option.flags.empty()) {
        plain.insert(plain.end(), option.choices.begin(), option.choices.end());
        continue;
      }
      for (const std::string& flag : option.flags) {
        values +=
            "    '" + verb.name + ":" + flag + "') words='" + joined(option.choices) + "' ;;\n";
      }
    }
    words += "        '" + verb.name + "') words='" + joined(plain) + "' flags='" + joined(flags) +
             "' ;;\n";
  }
  return "# bash completion of tokensparse; made by `tokensparse completion bash`\n"
         "_tokensparse() {\n"
         "  local verb='' words='' flags='' i current=${COMP_WORDS[COMP_CWORD]}\n"
         "  for ((i = 1; i < COMP_CWORD; i++)); do\n"
         "    case \"$verb:${COMP_WORDS[i]}\" in\n" +
         verbs +
         "    esac\n"
         "  done\n"
         "  case \"$verb:${COMP_WORDS[COMP_CWORD - 1]}\" in\n" +
         values +
         "    *)\n"
         "      case \"$verb\" in\n" +
         words +
         "      esac\n"
         "      [[ $current != -* ]] || words=$flags\n"
         "      ;;\n"
         "  esac\n"
         "  mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$current\")\n"
         "}\n"
         "complete -o default -F _tokensparse tokensparse\n";
}

/// What _arguments takes between brackets and after colons.
std::string zsh_text(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '[' || c == ']' || c == ':' || c == '\\') out += '\\';
    out += c;
  }
  return out;
}

std::string zsh_arguments(const VerbEntry& verb) {
  std::string text;
  for (const OptionEntry& option : verb.options) {
    const std::string action =
        option.choices.empty() ? "_files" : "(" + joined(option.choices) + ")";
    const std::string value =
        option.value.empty() ? "" : ":" + zsh_text(option.value) + ":" + action;
    if (option.flags.empty()) text += " \\\n        " + shell_quoted("*" + value);
    for (const std::string& flag : option.flags) {
      text +=
          " \\\n        " +
          shell_quoted("*" + flag + "[" + zsh_text(first_line(option.description)) + "]" + value);
    }
  }
  return text;
}

std::string zsh_verbs(const VerbEntry& verb, const std::vector<VerbEntry>& table) {
  std::string text;
  for (const std::string& inner : verb.verbs) {
    for (const VerbEntry& other : table) {
      if (other.name != (verb.name.empty() ? "" : verb.name + " ") + inner) continue;
      text +=
          " \\\n          " + shell_quoted(inner + ":" + zsh_text(first_line(other.description)));
    }
  }
  return text;
}

std::string zsh(const std::vector<VerbEntry>& table) {
  std::string find, verbs;
  for (const VerbEntry& verb : table) {
    for (const std::string& inner : verb.verbs) {
      find += "      '" + verb.name + ":" + inner + "') verb='" +
              (verb.name.empty() ? "" : verb.name + " ") + inner + "' first=$((i + 1)) ;;\n";
    }
    verbs += "    '" + verb.name + "')\n";
    if (!verb.verbs.empty()) {
      verbs += "      if [[ $words[CURRENT] != -* ]]; then\n        local -a verbs=(" +
               zsh_verbs(verb, table) +
               ")\n        _describe verb verbs\n        return\n      fi\n";
    }
    verbs += "      _arguments" + zsh_arguments(verb) + "\n      ;;\n";
  }
  return "#compdef tokensparse\n"
         "# made by `tokensparse completion zsh`\n"
         "_tokensparse() {\n"
         "  local verb='' i first=2\n"
         "  for ((i = 2; i < CURRENT; i++)); do\n"
         "    case \"$verb:$words[i]\" in\n" +
         find +
         "    esac\n"
         "  done\n"
         "  # _arguments sees the verb as the command\n"
         "  words=(\"${(@)words[first - 1,-1]}\")\n"
         "  ((CURRENT -= first - 2))\n"
         "  case $verb in\n" +
         verbs +
         "  esac\n"
         "}\n"
         "if [ \"$funcstack[1]\" = _tokensparse ]; then\n"
         "  _tokensparse \"$@\"\n"
         "else\n"
         "  compdef _tokensparse tokensparse\n"
         "fi\n";
}

std::string fish_condition(const VerbEntry& verb) {
  const size_t space = verb.name.find(' ');
  std::string condition = verb.name.empty()
                              ? "__fish_use_subcommand"
                              : "__fish_seen_subcommand_from " + verb.name.substr(0, space);
  if (space != std::string::npos) {
    condition += "; and __fish_seen_subcommand_from " + verb.name.substr(space + 1);
  }
  return " -n " + shell_quoted(condition);
}

std::string fish(const std::vector<VerbEntry>& table) {
  std::string text = "# fish completion of tokensparse; made by `tokensparse completion fish`\n";
  for (const VerbEntry& verb : table) {
    for (const VerbEntry& inner : table) {
      const std::string prefix = verb.name.empty() ? "" : verb.name + " ";
      const std::string word = inner.name.substr(std::min(prefix.size(), inner.name.size()));
      const bool own =
          inner.name.rfind(prefix, 0) == 0 && !word.empty() && word.find(' ') == std::string::npos;
      if (!own) continue;
      text += "complete -c tokensparse" + fish_condition(verb) + " -f -a " + word + " -d " +
              shell_quoted(first_line(inner.description)) + "\n";
    }
    for (const OptionEntry& option : verb.options) {
      text += "complete -c tokensparse" + fish_condition(verb);
      for (const std::string& flag : option.flags) {
        const bool is_long = flag.rfind("--", 0) == 0;
        text += is_long ? " -l " + flag.substr(2) : " -s " + flag.substr(1);
      }
      if (!option.choices.empty()) {
        text += " -x -a " + shell_quoted(joined(option.choices));
      } else if (!option.value.empty() && !option.flags.empty()) {
        text += " -r";
      }
      text += " -d " + shell_quoted(first_line(option.description)) + "\n";
    }
  }
  return text;
}

}  // namespace

std::string shell_quoted(const std::string& text) {
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

const std::vector<std::string>& shells() {
  static const std::vector<std::string> names = {"bash", "zsh", "fish"};
  return names;
}

std::string completion_script(const CLI::App& app, const std::string& shell) {
  const std::vector<VerbEntry> table = option_table(app);
  if (shell == "bash") return bash(table);
  return shell == "zsh" ? zsh(table) : fish(table);
}

}  // namespace tsp::cli
