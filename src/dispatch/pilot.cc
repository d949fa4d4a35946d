// SPDX-License-Identifier: MIT
#include "dispatch/pilot.h"

#include <algorithm>
#include <cmath>

#include "core/dtype.h"
#include "core/error.h"
#include "core/prefill_parts.h"

namespace tsp {

/// A token of the sample: its score over all heads, and how many tokens it stands for.
struct PilotToken {
  float score, weight;
};

namespace {

constexpr int32_t kMostStretches = kPilotStretches + 4;
constexpr int32_t kStep = 4;  // scores are averages of neighbours: not every one is looked at

/// Stretches of consecutive keys: the first one, whose tokens everybody looks at; every n-th; and
/// the last ones, so that the queries' own keys end the sample as they end the sequence.
struct Sample {
  int32_t block_size;
  int32_t stretch_blocks;
  int32_t num_stretches = 0;
  int32_t first_block[kMostStretches];
  float weight[kMostStretches];
  int32_t num_blocks = 0;
  int32_t tokens = 0;
};

Sample sample_of(const tsp_prefill_params_t& p, const Seq& seq) {
  Sample s;
  s.block_size = p.k.block_table != nullptr ? p.k.block_size : kPilotStretch;
  s.stretch_blocks = std::max(1, kPilotStretch / s.block_size);
  const int32_t blocks = (seq.k_len - 1) / s.block_size + 1;
  const int32_t stretches = (blocks - 1) / s.stretch_blocks + 1;
  const int32_t every = (stretches - 1) / kPilotStretches + 1;
  for (int32_t i = 0; i < stretches; ++i) {
    const bool sampled = i % every == every / 2;
    if (!sampled && i != 0 && i < stretches - 2) continue;
    s.first_block[s.num_stretches] = i * s.stretch_blocks;
    s.weight[s.num_stretches] = sampled ? static_cast<float>(every) : 1;
    ++s.num_stretches;
    s.num_blocks += std::min(s.stretch_blocks, blocks - i * s.stretch_blocks);
  }
  s.tokens = (s.num_blocks - 1) * s.block_size + (seq.k_len - 1) % s.block_size + 1;
  return s;
}

int32_t pilot_rows(const tsp_prefill_params_t& p, const Seq& seq) {
  return std::min(kPilotRows, seq.window(p.window));
}

/// score's parameters for a sample; `q_offsets` and `k_offsets` are [2].
tsp_score_params_t score_of_sample(const tsp_prefill_params_t& p, const Seq& seq, const Sample& s,
                                   int32_t* q_offsets, int32_t* k_offsets) {
  const int32_t rows = pilot_rows(p, seq);
  tsp_score_params_t score = score_part(p);
  score.window = rows;
  q_offsets[0] = k_offsets[0] = 0;
  q_offsets[1] = rows;
  k_offsets[1] = s.tokens;
  score.batch = {q_offsets, k_offsets, 1, 0};
  const auto skip = [](tsp_tensor_t& view, int64_t tokens) {
    view.data =
        static_cast<char*>(view.data) + tokens * view.token_stride * dtype_bytes(view.dtype);
  };
  skip(score.q, int64_t{seq.q_begin} + seq.q_len - rows);
  score.q.tokens = rows;
  if (p.k.block_table == nullptr) {
    skip(score.k, seq.k_begin);
    score.k.block_size = s.block_size;
    score.k.block_stride = s.block_size * score.k.token_stride;
  }
  return score;
}

/// The share of the sample's prefix that coverage would keep.
double kept_share(const tsp_prefill_params_t& p, const Sample& s, int32_t prefix,
                  const Pilot& pilot) {
  int32_t count = 0;
  double mass = 0, tokens = 0;
  for (int32_t i = 0, begin = 0; i < s.num_stretches && begin < prefix; ++i) {
    const int32_t end = std::min(prefix, begin + s.stretch_blocks * s.block_size);
    for (int32_t t = begin; t < end; t += kStep) {
      float sum = 0;
      for (int64_t head = 0; head < p.q.heads; ++head) sum += pilot.scores[head * prefix + t];
      if (!(sum >= 0 && sum < HUGE_VALF)) return 1;  // select keeps all of what it cannot rank
      pilot.entries[count++] = {sum, s.weight[i]};
      mass += double{sum} * s.weight[i];
      tokens += s.weight[i];
    }
    begin = end;
  }
  std::sort(pilot.entries, pilot.entries + count,
            [](const PilotToken& a, const PilotToken& b) { return a.score < b.score; });
  const double limit = static_cast<double>(p.coverage) * mass;
  double below = 0, dropped = 0;
  for (int32_t i = 0; i < count; ++i) {
    below += double{pilot.entries[i].score} * pilot.entries[i].weight;
    if (below >= limit) break;
    dropped += pilot.entries[i].weight;
  }
  return tokens == 0 ? 1 : 1 - dropped / tokens;
}

}  // namespace

Pilot make_pilot(const tsp_context_t& ctx, const tsp_prefill_params_t& p, Workspace<>& workspace) {
  int32_t blocks = 0, tokens = 0;
  Pilot pilot{};
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    if (seq.q_len == 0 || seq.k_len == 0) continue;
    const Sample sample = sample_of(p, seq);
    blocks = std::max(blocks, sample.num_blocks);
    tokens = std::max(tokens, sample.tokens);
    int32_t q_offsets[2], k_offsets[2];
    const tsp_score_params_t score = score_of_sample(p, seq, sample, q_offsets, k_offsets);
    if (ctx.ops->score_workspace == nullptr) continue;
    pilot.score_bytes = std::max(pilot.score_bytes, ctx.ops->score_workspace(ctx, score));
  }
  pilot.blocks = workspace.take<int32_t>(blocks);
  pilot.scores = workspace.take<float>(tokens * p.q.heads);
  pilot.entries = workspace.take<PilotToken>(tokens / kStep + kMostStretches);
  return pilot;
}

tsp_status_t guess_kept(tsp_context_t& ctx, const tsp_prefill_params_t& p, const Seq& seq,
                        const Pilot& pilot, void* score_workspace, int32_t* kept) {
  const Sample sample = sample_of(p, seq);
  int32_t q_offsets[2], k_offsets[2];
  tsp_score_params_t score = score_of_sample(p, seq, sample, q_offsets, k_offsets);
  const int32_t prefix = sample.tokens - q_offsets[1];
  const int32_t blocks = (seq.k_len - 1) / sample.block_size + 1;
  int32_t count = 0;
  for (int32_t i = 0; i < sample.num_stretches; ++i) {
    const int32_t end = std::min(blocks, sample.first_block[i] + sample.stretch_blocks);
    for (int32_t block = sample.first_block[i]; block < end; ++block) {
      const int32_t* const table = p.k.block_table;
      pilot.blocks[count++] =
          table == nullptr ? block : table[seq.index * p.k.table_stride + block];
    }
  }
  score.k.block_table = pilot.blocks;
  score.k.table_stride = count;
  score.scores = {};
  score.scores.data = pilot.scores;
  score.scores.dtype = TSP_F32;
  score.scores.tokens = score.scores.head_stride = prefix;
  score.scores.heads = p.q.heads;
  score.scores.dim = score.scores.token_stride = score.scores.dim_stride = 1;
  score.workspace = score_workspace;
  score.workspace_bytes = pilot.score_bytes;
  TSP_RETURN_IF_ERROR(ctx.ops->score(ctx, score));
  const int32_t all = seq.prefix_len(p.window);
  const auto share = static_cast<int32_t>(kept_share(p, sample, prefix, pilot) * all);
  *kept = seq.window(p.window) + std::min(all, std::max(p.min_tokens, share));
  return TSP_OK;
}

}  // namespace tsp
