// SPDX-License-Identifier: MIT
#include "cli/llama/draft_votes.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "cli/llama/openmp_threads.h"
#include "cli/llama/progress.h"
#include "cli/llama/session.h"
#include "cli/verbs.h"

namespace tsp::cli {

void check_same_tokens(const Model& target, const Model& draft) {
  const auto fail = [&](const std::string& how) {
    throw Failure("--draft: must have the tokenizer of the model, " + draft.path() + " has " + how);
  };
  const llama_vocab *ours = target.vocab(), *theirs = draft.vocab();
  const int32_t count = llama_vocab_n_tokens(ours);
  if (llama_vocab_n_tokens(theirs) != count) {
    fail(std::to_string(llama_vocab_n_tokens(theirs)) + " tokens, the model " +
         std::to_string(count));
  }
  for (llama_token token = 0; token < count; ++token) {
    const char* text = llama_vocab_get_text(ours, token);
    if (std::strcmp(text, llama_vocab_get_text(theirs, token)) != 0) {
      fail("another token " + std::to_string(token));
    }
  }
}

DraftVotes::DraftVotes(HeadMap map, const ggml_adapter::Setting& setting,
                       const RunConditions& conditions)
    : map_(std::move(map)),
      op_(setting.op),
      conditions_(conditions),
      ctx_(open_on_openmp(conditions.isa, conditions.threads)) {
  if (op_.share != TSP_SHARE_KV_GROUP) {
    throw Failure("--share: must be kv_group with --method sts, whose map is of KV heads",
                  kExitUsage);
  }
}

/// So many tokens at once that the last chunk holds all that vote.
int32_t DraftVotes::chunk_of(int32_t length) const {
  const int32_t most = std::min(conditions_.chunk(), length);
  for (int32_t chunk = most; chunk > most / 2; --chunk) {
    const int32_t rest = length % chunk;
    if (rest == 0 || rest >= op_.window) return chunk;
  }
  return length;
}

void DraftVotes::read(const Model& draft, const std::vector<llama_token>& prompt,
                      ggml_adapter::LinearServer* linear) {
  const auto length = static_cast<int32_t>(prompt.size());
  if (length > draft.trained_context()) {
    throw Failure("--draft: must take a prompt of " + std::to_string(length) + " tokens, " +
                  draft.path() + " was trained for " + std::to_string(draft.trained_context()));
  }
  scores_.assign(static_cast<size_t>(draft.num_layers()), {});
  scored_ = std::max(length - op_.window, 0);
  ggml_adapter::Options options;
  options.setting.op.precision = op_.precision;
  options.on_call = [&](int32_t layer, const tsp_prefill_params_t& call, int32_t keys) {
    if (keys != length || layer < 0 || layer >= draft.num_layers() || scored_ == 0) return TSP_OK;
    std::vector<float>& scores = scores_[static_cast<size_t>(layer)];
    scores.resize(static_cast<size_t>(scored_ * call.q.heads));
    tokensparse::ScoreParams params;
    params.window = op_.window;
    params.pool = op_.pool;
    params.scale = call.scale;
    params.precision = call.precision;
    params.q = call.q;
    params.k = call.k;
    params.batch = call.batch;
    params.scores = tokensparse::view(scores.data(), scored_, call.q.heads, 1);
    params.scores.token_stride = 1;
    params.scores.head_stride = scored_;
    return tokensparse::score(ctx_, params).code();
  };
  ggml_adapter::AttentionServer server(ctx_.get(), options);
  SessionOptions wanted;
  wanted.context = length;
  wanted.ubatch = chunk_of(length);
  wanted.threads = conditions_.threads;
  wanted.linear = linear;
  Session session(draft, wanted, &server);
  Progress progress("draft: reading the prompt", length, conditions_.progress);
  session.read_prompt(prompt, progress);
  progress.finish();
  seconds_ = session.read_seconds();
  for (const auto& layer : map_.heads) {
    for (const auto& set : layer) {
      for (const HeadMap::Head& head : set) {
        if (scored_ > 0 && scores_[static_cast<size_t>(head.layer)].empty()) {
          throw Failure("--draft: layer " + std::to_string(head.layer) + " of " + draft.path() +
                        " cannot vote: its attention is left to ggml");
        }
      }
    }
  }
}

tsp_status_t DraftVotes::choose(int32_t layer, int32_t rows, int32_t keys, tsp_index_sets_t& sets) {
  const int64_t prefix = keys - std::min(op_.window, rows);
  const auto index = static_cast<size_t>(layer);
  if (prefix > scored_ || index >= map_.heads.size()) {
    *sets.kept = keys;
    return TSP_OK;
  }
  const auto groups = static_cast<int64_t>(map_.heads[index].size());
  std::vector<float> votes(static_cast<size_t>(groups * prefix), 0.0f);
  for (int64_t group = 0; group < groups; ++group) {
    float* sum = votes.data() + group * prefix;
    const auto& heads = map_.heads[index][static_cast<size_t>(group)];
    for (const HeadMap::Head& head : heads) {
      const float* scores =
          scores_[static_cast<size_t>(head.layer)].data() + int64_t{head.head} * scored_;
      for (int64_t token = 0; token < prefix; ++token) sum[token] += scores[token];
    }
    for (int64_t token = 0; token < prefix; ++token) sum[token] /= static_cast<float>(heads.size());
  }
  tokensparse::SelectParams params;
  params.window = op_.window;
  params.min_tokens = op_.min_tokens;
  params.share = TSP_SHARE_HEAD;  // a column of votes is a KV head's already
  params.coverage = op_.coverage;
  params.keep = op_.keep;
  params.num_kv_heads = static_cast<int32_t>(groups);
  params.q_len = rows;
  params.k_len = keys;
  params.scores = tokensparse::view(votes.data(), prefix, groups, 1);
  params.scores.token_stride = 1;
  params.scores.head_stride = prefix;
  params.selected = sets;
  return tokensparse::select(ctx_, params).code();
}

}  // namespace tsp::cli
