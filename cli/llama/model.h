// SPDX-License-Identifier: MIT
// A GGUF model through llama.cpp: loading it, and turning a text and a question into its tokens.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cli/text_file.h"
#include "llama.h"

namespace tsp::cli {

class Model {
 public:
  /// Throws Failure with llama.cpp's reason. `verbose` lets its log through to stderr; without it
  /// llama.cpp is silent until the last Model is gone. `repack` lets ggml hold weights in the
  /// layout of its own matrix products, which nobody else can read.
  Model(const std::string& path, bool verbose, bool repack = true);

  llama_model* get() const { return model_.get(); }
  const llama_vocab* vocab() const { return llama_model_get_vocab(model_.get()); }
  const std::string& path() const { return path_; }
  int32_t num_layers() const { return llama_model_n_layer(model_.get()); }
  /// Of most weights; llama.cpp's guess where the file does not say.
  llama_ftype weight_type() const {
    return static_cast<llama_ftype>(llama_model_ftype(get()) & ~LLAMA_FTYPE_GUESSED);
  }
  int32_t trained_context() const { return llama_model_n_ctx_train(model_.get()); }

  /// One message, text, empty line, question, in a chat template (see chat_prompt()); what was used
  /// is told in `used` where that is not null.
  std::vector<llama_token> prompt_tokens(const std::string& text, const std::string& question,
                                         const std::string& chat_template = "model",
                                         std::string* used = nullptr) const;
  /// The same for a message that is one text.
  std::vector<llama_token> message_tokens(const std::string& message,
                                          const std::string& chat_template = "model",
                                          std::string* used = nullptr) const;
  /// The text alone, its markers taken for markers; the model's start in front where it wants one.
  std::vector<llama_token> raw_tokens(const std::string& text) const;
  /// Throws Failure, which names `name`, where a text has more tokens than `limit`. Of a text that
  /// is far too long it reads the start alone.
  void check_length(const std::string& text, const std::string& name, int32_t limit) const;
  std::vector<llama_token> tokens_of(const std::string& text, bool parse_markers) const;
  /// At most `count`, of as much of the text as that takes.
  std::vector<llama_token> first_tokens(const std::string& text, int32_t count) const;
  std::string text_of(llama_token token) const;

 private:
  struct Free {
    void operator()(llama_model* model) const { llama_model_free(model); }
  };
  size_t longest_token_bytes() const;

  std::string path_;
  std::unique_ptr<llama_model, Free> model_;
};

/// The reason in llama.cpp's last error message, or `otherwise`.
std::string llama_reason(const std::string& otherwise);

}  // namespace tsp::cli
