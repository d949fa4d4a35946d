// SPDX-License-Identifier: MIT
#include "cli/llama_model.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <mutex>
#include <sstream>

#include "cli/interrupt.h"
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

std::string read_text(const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (!file || !(text << file.rdbuf())) {
    // Streaming an empty file fails as well, without an error of the system.
    if (errno != 0) throw Failure("cannot read " + path + ": " + std::strerror(errno));
    throw Failure(path + " is empty");
  }
  return text.str();
}

Model::Model(const std::string& path, bool verbose, bool repack) : path_(path) {
  llama_log = {verbose, false, ""};
  llama_log_set(on_log, nullptr);
  check_magic(path);
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
  const auto length = static_cast<int32_t>(text.size());
  const int32_t count =
      -llama_tokenize(vocab(), text.data(), length, nullptr, 0, false, parse_markers);
  if (count < 0) throw Failure("a text of " + std::to_string(text.size()) + " bytes is too long");
  std::vector<llama_token> tokens(static_cast<size_t>(count));
  llama_tokenize(vocab(), text.data(), length, tokens.data(), count, false, parse_markers);
  return tokens;
}

std::vector<llama_token> Model::prompt_tokens(const std::string& text,
                                              const std::string& question) const {
  std::string before, after;
  if (const char* chat = llama_model_chat_template(get(), nullptr)) {
    const char marker[] = "TOKENSPARSE-MESSAGE";
    const llama_chat_message message = {"user", marker};
    std::vector<char> buffer(1 << 16);
    const int32_t length = llama_chat_apply_template(chat, &message, 1, true, buffer.data(),
                                                     static_cast<int32_t>(buffer.size()));
    if (length > 0 && length <= static_cast<int32_t>(buffer.size())) {
      const std::string whole(buffer.data(), static_cast<size_t>(length));
      const size_t at = whole.find(marker);
      if (at != std::string::npos) {
        before = whole.substr(0, at);
        after = whole.substr(at + std::strlen(marker));
      }
    }
  }
  std::vector<llama_token> tokens;
  if (llama_vocab_get_add_bos(vocab())) tokens.push_back(llama_vocab_bos(vocab()));
  const auto append = [&](const std::vector<llama_token>& more) {
    tokens.insert(tokens.end(), more.begin(), more.end());
  };
  append(tokens_of(before, true));
  append(tokens_of(text + "\n\n" + question, false));
  append(tokens_of(after, true));
  return tokens;
}

std::string Model::text_of(llama_token token) const {
  char piece[256];
  const int32_t length = llama_token_to_piece(vocab(), token, piece, sizeof piece, 0, false);
  return length > 0 ? std::string(piece, static_cast<size_t>(length)) : std::string();
}

const char* llama_description() {
  static const std::string description =
      std::string("llama.cpp ") + llama_version() + ", ggml " + ggml_version();
  return description.c_str();
}

}  // namespace tsp::cli
