// SPDX-License-Identifier: MIT
#include <algorithm>

#include "cuda/instances.h"
#include "cuda/ops.h"

namespace tsp::cuda {
namespace {

constexpr float kLog2E = 1.4426950408889634f;
// A huge window has many rows and needs few chunks to fill the chip: bounds its statistics.
constexpr int64_t kMaxStatBytes = int64_t{64} << 20;

ScoreArgs make_args(const State& state, const tsp_score_params_t& p, const Seq& seq) {
  ScoreArgs a{};
  a.q = q_rows(p.q, seq);
  a.k = k_rows(p.k, seq);
  a.q_len = seq.q_len;
  a.k_len = seq.k_len;
  a.window_len = seq.window(p.window);
  a.prefix_len = seq.prefix_len(p.window);
  a.num_kv_heads = static_cast<int32_t>(p.k.heads);
  a.group = static_cast<int32_t>(p.q.heads / p.k.heads);
  a.pool = p.pool;
  a.scale_log2 = p.scale * kLog2E;
  a.plan = plan_score(a.window_len, a.k_len, a.prefix_len, a.num_kv_heads, a.group, state.num_sms,
                      state.warpgroups);
  const int64_t chunk_bytes = p.q.heads * a.plan.stat_rows * static_cast<int64_t>(sizeof(float2));
  a.plan.stat_chunks =
      static_cast<int32_t>(std::clamp<int64_t>(kMaxStatBytes / chunk_bytes, 1, a.plan.stat_chunks));
  return a;
}

void place(ScoreArgs& a, Scratch& scratch) {
  const int64_t heads = int64_t{a.num_kv_heads} * a.group;
  a.stats = scratch.take<float2>(heads * a.plan.stat_chunks * a.plan.stat_rows);
  a.mass = scratch.take<float>(heads * a.prefix_len);
}

}  // namespace

size_t score_scratch_bytes(const State& state, const tsp_score_params_t& p, const Seq& seq) {
  if (seq.prefix_len(p.window) <= 0) return 0;
  ScoreArgs a = make_args(state, p, seq);
  Scratch scratch(nullptr);
  place(a, scratch);
  return scratch.used();
}

tsp_status_t run_score(const State& state, const tsp_score_params_t& p, const Seq& seq,
                       const Values& scores, void* scratch_memory, cudaStream_t stream) {
  if (seq.prefix_len(p.window) <= 0) return TSP_OK;
  ScoreArgs a = make_args(state, p, seq);
  Scratch scratch(scratch_memory);
  place(a, scratch);
  a.scores = scores;
  TSP_RETURN_IF_ERROR(launch_score_any(p.q.dtype, static_cast<int32_t>(p.q.dim), a, stream));
  return launch_pool(a, stream);
}

size_t score_workspace(const tsp_context_t& ctx, const tsp_score_params_t& p) {
  size_t bytes = 0;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    bytes = std::max(bytes, score_scratch_bytes(state_of(ctx), p, seq_at(p.batch, b)));
  }
  return bytes;
}

tsp_status_t score(tsp_context_t& ctx, const tsp_score_params_t& p) {
  const DeviceGuard guard(ctx);
  TSP_RETURN_IF_ERROR(check_stream(ctx));
  TSP_RETURN_IF_ERROR(check_rows(ctx, "q", p.q, true));
  TSP_RETURN_IF_ERROR(check_rows(ctx, "k", p.k, true));
  TSP_RETURN_IF_ERROR(check_same_dtype("k", p.k, p.q));
  if (p.scores.data != nullptr) TSP_RETURN_IF_ERROR(check_pointer(ctx, "scores", p.scores.data));
  if (p.workspace != nullptr) TSP_RETURN_IF_ERROR(check_pointer(ctx, "workspace", p.workspace));
  int64_t column = 0;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    TSP_RETURN_IF_ERROR(run_score(state_of(ctx), p, seq, make_values(p.scores, column), p.workspace,
                                  stream_of(ctx)));
    column += seq.prefix_len(p.window);
  }
  return TSP_OK;
}

}  // namespace tsp::cuda
