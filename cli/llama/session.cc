// SPDX-License-Identifier: MIT
#include "cli/llama/session.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "cli/llama/interrupt.h"
#include "cli/verbs.h"

namespace tsp::cli {
namespace {

bool should_abort(void*) { return interrupted(); }

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

Session::Session(const Model& model, const SessionOptions& options,
                 ggml_adapter::AttentionServer* server, NodeObserver observer)
    : model_(model),
      options_(options),
      server_(server),
      observer_(std::move(observer)),
      callback_(server, options.linear) {
  if (server == nullptr) {
    timer_ = std::make_unique<NodeTimer>(options.threads);
    timer_->set_abort(should_abort, nullptr);
  }
  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<uint32_t>(options.context);
  params.n_batch = params.n_ubatch =
      static_cast<uint32_t>(std::max(options.ubatch, options.late_ubatch));
  params.n_threads = params.n_threads_batch = options.threads;
  // The default reserves logits of a whole batch: gigabytes.
  params.n_outputs_max = static_cast<uint32_t>(options.outputs);
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  params.abort_callback = should_abort;
  params.cb_eval = on_node;
  params.cb_eval_user_data = this;
  ctx_.reset(llama_init_from_model(model.get(), params));
  if (ctx_ == nullptr) {
    throw Failure("cannot make a context of " + std::to_string(options.context) + " tokens for " +
                  model.path() + ": " + llama_reason("llama.cpp gives no reason"));
  }
}

Session::~Session() = default;

double Session::attention_seconds() const {
  if (timer_ != nullptr) return timer_->seconds();
  double seconds = server_->no_layer().seconds;
  for (const ggml_adapter::LayerStats& layer : server_->layers()) seconds += layer.seconds;
  return seconds;
}

std::vector<double> Session::attention_by_layer() const {
  if (timer_ != nullptr) return timer_->layers();
  std::vector<double> seconds;
  for (const ggml_adapter::LayerStats& layer : server_->layers()) seconds.push_back(layer.seconds);
  return seconds;
}

bool Session::on_node(ggml_tensor* node, bool ask, void* self) {
  auto& session = *static_cast<Session*>(self);
  if (session.observer_ && session.observer_(node, ask)) return true;
  return session.timer_ != nullptr
             ? NodeTimer::call(node, ask, session.timer_.get())
             : ggml_adapter::EvalCallback::call(node, ask, &session.callback_);
}

int32_t Session::chunk_at(int32_t position) const {
  return options_.late_ubatch > 0 && position >= kLateFrom ? options_.late_ubatch : options_.ubatch;
}

llama_token Session::read_prompt(const std::vector<llama_token>& prompt, Progress& progress) {
  const auto start = std::chrono::steady_clock::now();
  const auto length = static_cast<int32_t>(prompt.size());
  for (int32_t done = 0; done < length;) {
    const int32_t count = std::min(chunk_at(done), length - done);
    decode(prompt.data() + done, count, done + count == length ? 1 : 0);
    done += count;
    progress.update(done);
  }
  const llama_token first = likeliest();
  read_seconds_ = seconds_since(start);
  return first;
}

AnswerLoss Session::loss_of(const std::vector<llama_token>& answer) {
  AnswerLoss loss;
  if (answer.empty()) return loss;
  const int32_t vocabulary = llama_vocab_n_tokens(model_.vocab());
  const auto add = [&](int32_t row, llama_token token) {
    const float* logits = llama_get_logits_ith(ctx_.get(), row);
    if (logits == nullptr) throw Failure("llama.cpp returned no logits");
    const double highest = *std::max_element(logits, logits + vocabulary);
    double sum = 0;
    for (int32_t i = 0; i < vocabulary; ++i) sum += std::exp(logits[i] - highest);
    loss.mean += std::log(sum) + highest - double{logits[token]};
    loss.right += logits[token] == static_cast<float>(highest);
  };
  add(-1, answer[0]);
  const int32_t before = position_;
  const auto rows = static_cast<int32_t>(answer.size()) - 1;  // the last token predicts nothing
  for (int32_t done = 0; done < rows;) {
    const int32_t count = std::min(options_.outputs, rows - done);
    decode(answer.data() + done, count, count);
    for (int32_t i = 0; i < count; ++i) add(i, answer[static_cast<size_t>(done + i + 1)]);
    done += count;
  }
  position_ = before;
  if (rows > 0 && !llama_memory_seq_rm(llama_get_memory(ctx_.get()), 0, before, -1)) {
    throw Failure(model_.path() + " cannot go back to the end of the prompt after an answer");
  }
  loss.mean /= static_cast<double>(answer.size());
  return loss;
}

std::string Session::answer(llama_token first, int32_t limit, const TextObserver& on_text) {
  std::string text;
  const auto start = std::chrono::steady_clock::now();
  int32_t decoded = 0;
  for (llama_token token = first; !llama_vocab_is_eog(model_.vocab(), token);) {
    const std::string piece = model_.text_of(token);
    text += piece;
    if (on_text) on_text(piece);
    if (decoded + 1 >= limit) break;
    decode(&token, 1, 1);
    ++decoded;
    token = likeliest();
  }
  if (decoded > 0) decode_per_second_ = decoded / seconds_since(start);
  return text;
}

void Session::decode(const llama_token* tokens, int32_t count, int32_t outputs) {
  stop_if_interrupted();
  llama_batch batch = llama_batch_init(count, 0, 1);
  batch.n_tokens = count;
  for (int32_t i = 0; i < count; ++i) {
    batch.token[i] = tokens[i];
    batch.pos[i] = position_++;
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = 0;
    batch.logits[i] = i >= count - outputs;
  }
  // An observer looks at whole layers.
  if (server_ != nullptr && !observer_) server_->set_rows_read(outputs);
  // n_batch is n_ubatch: a batch is one graph.
  if (server_ != nullptr) server_->begin_graph();
  if (options_.linear != nullptr) options_.linear->begin_graph();
  const int32_t status = llama_decode(ctx_.get(), batch);
  llama_batch_free(batch);
  stop_if_interrupted();
  if (!callback_.error().empty()) throw Failure(callback_.error());
  // An observer keeps nodes to itself.
  if (status == 0 && options_.linear != nullptr && !observer_ && !options_.linear->end_graph()) {
    throw Failure(model_.path() + ": its last node was not computed; --linear ggml does");
  }
  if (status != 0) {
    throw Failure("llama.cpp could not run the model: " +
                  llama_reason("llama_decode returned " + std::to_string(status)));
  }
}

llama_token Session::likeliest() const {
  const float* logits = llama_get_logits_ith(ctx_.get(), -1);
  if (logits == nullptr) throw Failure("llama.cpp returned no logits");
  const int32_t count = llama_vocab_n_tokens(model_.vocab());
  return static_cast<llama_token>(std::max_element(logits, logits + count) - logits);
}

}  // namespace tsp::cli
