// SPDX-License-Identifier: MIT
// The turn of a user as a model expects it, by the chat template in its file or another one.
#pragma once

#include <string>
#include <vector>

#include "llama.h"

namespace tsp::cli {

struct PromptPart {
  std::string text;
  bool of_user;  // whose text stays text, even where it looks like a marker of the template
};

struct ChatPrompt {
  std::vector<PromptPart> parts;
  std::string used;  // "the model's", "none", "none (the model has none)", a name or a file
};

/// `message` as a user's turn, and the start of the answer to it. `choice` is "model", "none", the
/// name of a template that llama.cpp has built in, or a file that holds one. Templates are run by
/// llama.cpp's own Jinja. Throws Failure where `choice` is none of these or the template fails.
ChatPrompt chat_prompt(const llama_model& model, const std::string& choice,
                       const std::string& message);

}  // namespace tsp::cli
