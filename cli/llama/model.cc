// SPDX-License-Identifier: MIT
#include "cli/llama/model.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <mutex>

#include "cli/llama/chat_template.h"
#include "cli/llama/cpu.h"
#include "cli/llama/interrupt.h"
#include "cli/verbs.h"
#include "ggml.h"

namespace tsp::cli {
namespace {

// What llama.cpp says goes through one function of the process.
struct Log {
  bool verbose = false;
  bool shown = false;
  std::string error;  // the first error since clear(): what follows repeats it in general terms
} llama_log;

void on_log(ggml_log_level level, const char* text, void*) {
  if (level == GGML_LOG_LEVEL_ERROR && llama_log.error.empty()) llama_log.error = text;
  // A continuation belongs to the line before it.
  if (level != GGML_LOG_LEVEL_CONT) llama_log.shown = level >= GGML_LOG_LEVEL_INFO;
  if (llama_log.verbose && llama_log.shown) std::fputs(text, stderr);
}

bool go_on(float, void*) { return !interrupted(); }

void check_magic(const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  char magic[4] = {};
  if (!file || (!file.read(magic, sizeof magic) && file.bad())) {
    throw Failure("cannot read " + path + ": " + std::strerror(errno != 0 ? errno : EIO));
  }
  if (std::memcmp(magic, "GGUF", sizeof magic) != 0) throw Failure(path + " is not a GGUF file");
}

}  // namespace

std::string llama_reason(const std::string& otherwise) {
  // "llama_model_load: error loading model: tensor 'x' is missing" -> the last part
  std::string reason = llama_log.error;
  for (const std::string marker : {"error loading model: ", "gguf_init_from_file_ptr: ",
                                   "gguf_init_from_reader: ", "gguf_init_from_file: "}) {
    const size_t at = reason.find(marker);
    if (at != std::string::npos) reason.erase(0, at + marker.size());
  }
  while (!reason.empty() && (reason.back() == '\n' || reason.back() == '.')) reason.pop_back();
  for (char& c : reason) c = c == '\n' ? ' ' : c;
  return reason.empty() ? otherwise : reason;
}

Model::Model(const std::string& path, bool verbose, bool repack) : path_(path) {
  llama_log = {verbose, false, ""};
  llama_log_set(on_log, nullptr);
  check_magic(path);
  if (const std::string missing = missing_for_ggml(); !missing.empty()) {
    throw Failure("this build's llama.cpp needs a processor with " + missing +
                  "; cmake -DGGML_NATIVE=OFF builds one for others");
  }
  static std::once_flag once;
  std::call_once(once, llama_backend_init);
  llama_model_params params = llama_model_default_params();
  params.n_gpu_layers = 0;  // attention is served in the processor's memory
  params.use_extra_bufts = repack;
  params.progress_callback = go_on;
  model_.reset(llama_model_load_from_file(path.c_str(), params));
  stop_if_interrupted();
  if (model_ == nullptr) {
    throw Failure("cannot load " + path + ": " + llama_reason("llama.cpp gives no reason"));
  }
  if (llama_vocab_type(vocab()) == LLAMA_VOCAB_TYPE_NONE) {
    throw Failure(path + " has no vocabulary: it cannot read text");
  }
  if (!llama_model_has_decoder(get()) || llama_model_has_encoder(get())) {
    throw Failure(path + " is not a model that continues a text (it has an encoder)");
  }
}

std::vector<llama_token> Model::tokens_of(const std::string& text, bool parse_markers) const {
  if (text.size() > kMaxTextBytes) {
    throw Failure("a text of " + std::to_string(text.size()) + " bytes is too long");
  }
  const auto length = static_cast<int32_t>(text.size());
  std::vector<llama_token> tokens(text.size() / 2 + 16);
  for (;;) {
    const int32_t count = llama_tokenize(vocab(), text.data(), length, tokens.data(),
                                         static_cast<int32_t>(tokens.size()), false, parse_markers);
    if (count == INT32_MIN) {
      throw Failure("a text of " + std::to_string(text.size()) + " bytes has too many tokens");
    }
    tokens.resize(static_cast<size_t>(std::abs(count)));
    if (count >= 0) return tokens;
  }
}

std::vector<llama_token> Model::first_tokens(const std::string& text, int32_t count) const {
  const auto wanted = static_cast<size_t>(count);
  for (size_t bytes = 8 * wanted;; bytes *= 4) {
    const bool whole = bytes >= text.size();
    std::vector<llama_token> tokens =
        tokens_of(whole ? text : whole_characters(text.substr(0, bytes)), false);
    // The last token may be another one in the whole text.
    if (!whole && tokens.size() <= wanted) continue;
    tokens.resize(std::min(tokens.size(), wanted));
    return tokens;
  }
}

size_t Model::longest_token_bytes() const {
  int32_t longest = 1;
  char none;
  for (llama_token token = 0; token < llama_vocab_n_tokens(vocab()); ++token) {
    longest = std::max(longest, -llama_token_to_piece(vocab(), token, &none, 0, 0, true));
  }
  return static_cast<size_t>(longest);
}

void Model::check_length(const std::string& text, const std::string& name, int32_t limit) const {
  const auto allowed = static_cast<size_t>(limit);
  const auto fail = [&](const std::string& tokens) {
    return Failure(name + " is too long: its " + std::to_string(text.size()) + " bytes are " +
                   tokens + ", and the context holds " + std::to_string(limit) + " (--ctx)");
  };
  if (text.size() <= allowed) return;  // a token is a byte or more
  const size_t fewest = text.size() / longest_token_bytes();
  if (fewest > allowed) throw fail(std::to_string(fewest) + " tokens or more");
  const bool too_long = first_tokens(text, limit + 1).size() > allowed;
  if (too_long) throw fail("more than " + std::to_string(limit) + " tokens");
}

std::vector<llama_token> Model::prompt_tokens(const std::string& text, const std::string& question,
                                              const std::string& chat_template,
                                              std::string* used) const {
  return message_tokens(text + "\n\n" + question, chat_template, used);
}

std::vector<llama_token> Model::raw_tokens(const std::string& text) const {
  std::vector<llama_token> tokens = tokens_of(text, true);
  if (llama_vocab_get_add_bos(vocab())) tokens.insert(tokens.begin(), llama_vocab_bos(vocab()));
  return tokens;
}

std::vector<llama_token> Model::message_tokens(const std::string& message,
                                               const std::string& chat_template,
                                               std::string* used) const {
  const ChatPrompt prompt = chat_prompt(*get(), chat_template, message);
  if (used != nullptr) *used = prompt.used;
  std::vector<llama_token> tokens;
  if (llama_vocab_get_add_bos(vocab())) tokens.push_back(llama_vocab_bos(vocab()));
  for (const PromptPart& part : prompt.parts) {
    const std::vector<llama_token> more = tokens_of(part.text, !part.of_user);
    tokens.insert(tokens.end(), more.begin(), more.end());
  }
  return tokens;
}

std::string Model::text_of(llama_token token) const {
  char piece[256];
  const int32_t length = llama_token_to_piece(vocab(), token, piece, sizeof piece, 0, false);
  return length > 0 ? std::string(piece, static_cast<size_t>(length)) : std::string();
}

const char* llama_description() {
  static const std::string description = [] {
    const std::string missing = missing_for_ggml();
    return std::string("llama.cpp ") + llama_version() + ", ggml " + ggml_version() +
           (missing.empty() ? "" : ", which cannot run here: the processor lacks " + missing);
  }();
  return description.c_str();
}

}  // namespace tsp::cli
