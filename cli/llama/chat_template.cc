// SPDX-License-Identifier: MIT
#include "cli/llama/chat_template.h"

#include <algorithm>
#include <filesystem>

#include "cli/text_file.h"
#include "cli/verbs.h"
#include "jinja/lexer.h"
#include "jinja/parser.h"
#include "jinja/runtime.h"
#include "jinja/value.h"

namespace tsp::cli {
namespace {

using Parts = std::vector<PromptPart>;

std::vector<std::string> built_in_names() {
  std::vector<const char*> names(static_cast<size_t>(llama_chat_builtin_templates(nullptr, 0)));
  llama_chat_builtin_templates(names.data(), names.size());
  return {names.begin(), names.end()};
}

/// llama.cpp's C++ for templates that it knows by name. They place the message as it is.
Parts apply_built_in(const std::string& name, const std::string& message) {
  const std::string place = "TOKENSPARSE-MESSAGE";
  const llama_chat_message turn = {"user", place.c_str()};
  std::string text(1 << 14, '\0');
  const int32_t length = llama_chat_apply_template(name.c_str(), &turn, 1, true, text.data(),
                                                   static_cast<int32_t>(text.size()));
  if (length < 0 || static_cast<size_t>(length) > text.size()) return {};
  text.resize(static_cast<size_t>(length));
  const size_t at = text.find(place);
  if (at == std::string::npos) return {};
  return {{text.substr(0, at), false}, {message, true}, {text.substr(at + place.size()), false}};
}

std::string marker_of(const llama_vocab* vocab, llama_token token) {
  char piece[256];
  if (token == LLAMA_TOKEN_NULL) return "";
  const int32_t length = llama_token_to_piece(vocab, token, piece, sizeof piece, 0, true);
  return length > 0 ? std::string(piece, static_cast<size_t>(length)) : std::string();
}

jinja::value string_of(const std::string& text) { return jinja::mk_val<jinja::value_string>(text); }

/// Most templates take the message as a string, some only as a list of parts.
jinja::value content_of(const std::string& message, bool as_list) {
  auto text = jinja::mk_val<jinja::value_string>(message);
  text->mark_input();
  if (!as_list) return text;
  auto part = jinja::mk_val<jinja::value_object>();
  part->insert("type", string_of("text"));
  part->insert("text", text);
  auto list = jinja::mk_val<jinja::value_array>();
  list->push_back(part);
  return list;
}

Parts run_template(const jinja::program& program, const std::string& source,
                   const llama_vocab* vocab, const jinja::value& content) {
  auto turn = jinja::mk_val<jinja::value_object>();
  turn->insert("role", string_of("user"));
  turn->insert("content", content);
  auto messages = jinja::mk_val<jinja::value_array>();
  messages->push_back(turn);
  jinja::context context(source);
  context.set_val("messages", messages);
  context.set_val("add_generation_prompt", jinja::mk_val<jinja::value_bool>(true));
  context.set_val("bos_token", string_of(marker_of(vocab, llama_vocab_bos(vocab))));
  context.set_val("eos_token", string_of(marker_of(vocab, llama_vocab_eos(vocab))));
  const jinja::value result = jinja::runtime(context).execute(program);
  Parts parts;
  for (const auto& part : jinja::runtime::gather_string_parts(result)->as_string().parts) {
    if (!part.val.empty()) parts.push_back({part.val, part.is_input});
  }
  return parts;
}

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

Parts apply_jinja(const std::string& source, const llama_vocab* vocab, const std::string& message,
                  const std::string& whose) {
  const auto fail = [&](const std::string& reason) {
    return Failure("--chat-template: " + whose + " cannot be applied: " + reason +
                   "; another one, or none, can be named");
  };
  std::string reason;
  try {
    const jinja::lexer_result tokens = jinja::lexer().tokenize(source);
    const jinja::program program = jinja::parse_from_tokens(tokens);
    for (const bool as_list : {false, true}) {
      try {
        Parts parts = run_template(program, source, vocab, content_of(message, as_list));
        const auto shown = [](const PromptPart& part) { return part.of_user; };
        if (std::any_of(parts.begin(), parts.end(), shown)) return parts;
        if (reason.empty()) reason = "it leaves the message out";
      } catch (const std::exception& error) {
        if (reason.empty()) reason = first_line(error.what());
      }
    }
  } catch (const std::exception& error) {
    reason = first_line(error.what());
  }
  throw fail(reason);
}

/// The tokenizer puts it there as well.
void drop_start_marker(Parts& parts, const llama_vocab* vocab) {
  const std::string start = marker_of(vocab, llama_vocab_bos(vocab));
  if (!llama_vocab_get_add_bos(vocab) || start.empty() || parts.empty()) return;
  PromptPart& first = parts.front();
  if (!first.of_user && first.text.starts_with(start)) first.text.erase(0, start.size());
}

bool is_file(const std::string& path) {
  std::error_code error;
  return std::filesystem::is_regular_file(path, error);
}

}  // namespace

ChatPrompt chat_prompt(const llama_model& model, const std::string& choice,
                       const std::string& message) {
  const llama_vocab* vocab = llama_model_get_vocab(&model);
  const char* own = llama_model_chat_template(&model, nullptr);
  if (choice == "none") return {{{message, true}}, "none"};
  if (choice == "model" && own == nullptr) {
    return {{{message, true}}, "none (the model has none)"};
  }
  const std::vector<std::string> names = built_in_names();
  ChatPrompt prompt;
  if (choice == "model") {
    prompt = {apply_jinja(own, vocab, message, "the model's chat template"), "the model's"};
  } else if (std::find(names.begin(), names.end(), choice) != names.end()) {
    prompt = {apply_built_in(choice, message), choice};
    if (prompt.parts.empty()) throw Failure("--chat-template: " + choice + " cannot be applied");
  } else if (is_file(choice)) {
    prompt = {apply_jinja(read_text(choice), vocab, message, choice), choice};
  } else {
    std::string list;
    for (const std::string& name : names) list += ", " + name;
    throw Failure("--chat-template: must be model, none, a file with a template, or one of " +
                      list.substr(2) + "; got " + choice,
                  kExitUsage);
  }
  drop_start_marker(prompt.parts, vocab);
  return prompt;
}

}  // namespace tsp::cli
