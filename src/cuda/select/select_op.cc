// SPDX-License-Identifier: MIT
#include <algorithm>
#include <bit>
#include <cmath>

#include "cuda/ops.h"

namespace tsp::cuda {
namespace {

int32_t ceil_log2(int64_t n) {
  return n <= 1 ? 0 : static_cast<int32_t>(std::bit_width(static_cast<uint64_t>(n - 1)));
}

}  // namespace

tsp_status_t run_select(const State& state, const SelectTask& task, const Seq& seq, void* scratch,
                        cudaStream_t stream) {
  const int32_t window = seq.window(task.window);
  if (is_dense(seq, task.window, task.min_tokens, task.coverage, task.keep)) {
    return launch_copy_sets(Sets{}, task.out, task.num_sets, seq.k_len, stream);
  }
  SelectArgs a{};
  a.scores = task.scores;
  a.out = task.out;
  a.num_heads = task.num_heads;
  a.num_sets = task.num_sets;
  a.prefix_len = seq.prefix_len(task.window);
  a.k_len = seq.k_len;
  a.min_tokens = task.min_tokens;
  a.fixed_count = -1;
  if (task.keep > 0.f) {
    const auto kept =
        static_cast<int64_t>(std::ceil(static_cast<double>(task.keep) * seq.k_len)) - window;
    a.fixed_count = static_cast<int32_t>(
        std::min<int64_t>(a.prefix_len, std::max<int64_t>(task.min_tokens, kept)));
  }
  a.coverage = static_cast<double>(task.coverage);
  a.mass_scale = std::ldexp(1.0, 61 - ceil_log2(task.num_heads) - ceil_log2(a.prefix_len));
  // Few sets of a long prompt have few clusters, and their reading costs more than the ends of
  // kernels.
  a.clusters = state.warpgroups &&
               (a.prefix_len <= kClusterPrefix || a.num_sets * kClusterBlocks >= state.num_sms);
  constexpr int kStretch = kClusterBlocks * kOrderTokens;
  a.cluster_tokens = (a.k_len + kStretch - 1) / kStretch * kOrderTokens;
  place_select_scratch(a, scratch);
  return launch_select(a, stream);
}

size_t select_workspace(const tsp_context_t&, const tsp_select_params_t& p) {
  size_t bytes = 0;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    bytes = std::max(
        bytes, select_scratch_bytes(seq_at(p.batch, b).prefix_len(p.window), p.selected.num_sets));
  }
  return bytes;
}

tsp_status_t select(tsp_context_t& ctx, const tsp_select_params_t& p) {
  const DeviceGuard guard(ctx);
  TSP_RETURN_IF_ERROR(check_stream(ctx));
  if (p.scores.data != nullptr) TSP_RETURN_IF_ERROR(check_pointer(ctx, "scores", p.scores.data));
  TSP_RETURN_IF_ERROR(check_set_memory(ctx, "selected", p.selected));
  TSP_RETURN_IF_ERROR(check_pointer(ctx, "workspace", p.workspace));
  int64_t column = 0;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    const SelectTask task{make_values(p.scores, column),
                          make_sets(p.selected, seq, p.scores.heads),
                          static_cast<int32_t>(p.scores.heads),
                          p.selected.num_sets,
                          p.window,
                          p.min_tokens,
                          p.coverage,
                          p.keep};
    TSP_RETURN_IF_ERROR(run_select(state_of(ctx), task, seq, p.workspace, stream_of(ctx)));
    column += seq.prefix_len(p.window);
  }
  return TSP_OK;
}

}  // namespace tsp::cuda
