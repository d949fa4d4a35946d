// SPDX-License-Identifier: MIT
// prefill: score, select, estimate and attend of each sequence in turn, all on the context's
// stream. Kept counts stay on the device; what one step leaves for the next lies in the caller's
// workspace: [indices][kept][block lists][page tables][scores, then the pieces of score and select
// | the pieces of estimate | the pieces of attend].
#include <algorithm>

#include "cuda/attend/attend_run.h"
#include "cuda/estimate/estimate_run.h"
#include "cuda/ops.h"
#include "cuda/prefill_cost.h"

namespace tsp::cuda {
namespace {

tsp_attend_params_t attend_params(const tsp_prefill_params_t& p) {
  tsp_attend_params_t a = attend_part(p);
  a.selected = p.selected;
  a.workspace = p.workspace;
  a.workspace_bytes = p.workspace_bytes;
  return a;
}

struct Layout {
  int32_t* indices = nullptr;  // [S, set_stride]; null: the caller's
  int64_t set_stride = 0;      // longest Tk that is not dense
  int32_t* kept = nullptr;     // [1]; null: the caller's
  tsp_block_sets_t blocks{};   // with a pattern; the strides between sequences are 0
  PageTables tables;           // of one sequence at a time too
  unsigned char* shared = nullptr;
  size_t bytes = 0;
};

bool has_pattern(const tsp_prefill_params_t& p) { return p.pattern.kind != TSP_PATTERN_NONE; }

/// Lists of the longest sequence, without their memory.
tsp_block_sets_t block_lists(const tsp_prefill_params_t& p) {
  tsp_block_sets_t s{};
  s.block = p.pattern.block;
  s.num_sets = num_sets_for(p.pattern.share, p.q.heads, p.k.heads);
  s.row_stride = (int64_t{longest_k(p.batch)} + s.block - 1) / s.block;
  s.count_set_stride = (int64_t{longest_q(p.batch)} + s.block - 1) / s.block;
  s.set_stride = s.count_set_stride * s.row_stride;
  return s;
}

EstimateCall estimate_call(const State& state, const tsp_estimate_params_t& e, const Sets& sets,
                           int32_t num_lists) {
  BlockLists out;
  out.blocks = e.blocks.blocks;
  out.counts = e.blocks.counts;
  out.row_stride = e.blocks.row_stride;
  out.set_stride = e.blocks.set_stride;
  out.count_stride = e.blocks.count_set_stride;
  return {e, sets, num_lists, out, state.warpgroups, state.num_sms};
}

bool chooses(const tsp_prefill_params_t& p) { return p.given.indices == nullptr; }

/// Exact attention, whatever the scores are.
bool dense(const tsp_prefill_params_t& p, const Seq& seq) {
  const float keep = chooses(p) ? p.keep : 0.f;
  if (p.when == TSP_WHEN_PAYS && !prefill_pays(seq.q_len, seq.k_len, p.q.heads, p.q.dim, keep)) {
    return true;
  }
  return chooses(p) && is_dense(p, seq);
}

/// The lists and counts are of one sequence at a time: the next reuses them. `shared` comes last,
/// so that a run finds the pieces without its size.
Layout place(const tsp_prefill_params_t& p, size_t shared_bytes, void* base) {
  Scratch scratch(base);
  Layout layout;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    if (!chooses(p) || dense(p, seq)) continue;
    layout.set_stride = std::max<int64_t>(layout.set_stride, seq.k_len);
  }
  const bool lists = layout.set_stride > 0;
  if (lists && p.selected.indices == nullptr) {
    layout.indices = scratch.take<int32_t>(p.selected.num_sets * layout.set_stride);
  }
  if (lists && p.selected.kept == nullptr) layout.kept = scratch.take<int32_t>(1);
  if (has_pattern(p)) {
    layout.blocks = block_lists(p);
    layout.blocks.blocks = scratch.take<int32_t>(layout.blocks.num_sets * layout.blocks.set_stride);
    layout.blocks.counts =
        scratch.take<int32_t>(layout.blocks.num_sets * layout.blocks.count_set_stride);
  }
  layout.tables = place_tables(p.k, p.v, p.batch, scratch);
  layout.shared = scratch.take<unsigned char>(static_cast<int64_t>(shared_bytes));
  layout.bytes = scratch.used();
  return layout;
}

Sets sets_of(const tsp_prefill_params_t& p, const Seq& seq, const Layout& layout) {
  Sets sets = make_sets(p.selected, seq, p.q.heads);
  if (sets.indices == nullptr) {
    sets.indices = layout.indices;
    sets.set_stride = layout.set_stride;
  }
  if (sets.kept == nullptr) sets.kept = layout.kept;
  return sets;
}

/// What the steps of one sequence need of the memory that they share.
size_t shared_bytes(const tsp_context_t& ctx, const tsp_prefill_params_t& p, const Seq& seq) {
  State& state = state_of(ctx);
  tsp_attend_params_t a = attend_params(p);
  size_t estimate_bytes = 0;
  int32_t some = 0;
  if (has_pattern(p)) {
    tsp_estimate_params_t e = estimate_part(p);
    e.blocks = a.blocks = block_lists(p);
    a.blocks.blocks = a.blocks.counts = &some;  // there will be lists
    const int32_t lists = dense(p, seq) ? 0 : p.selected.num_sets;
    estimate_bytes = estimate_scratch_bytes(estimate_call(state, e, Sets{}, lists), seq);
  }
  const auto with_estimate = [&](size_t bytes) { return std::max(bytes, estimate_bytes); };
  const bool all = dense(p, seq);
  AttendTask task = all ? dense_task(a, seq) : sparse_task(a, seq, Sets{}, p.selected.num_sets);
  task.own_lists = has_pattern(p);
  if (all || !chooses(p)) return with_estimate(attend_scratch_bytes(state, task));
  Scratch steps(nullptr);
  steps.take<float>(p.q.heads * seq.prefix_len(p.window));
  steps.take<unsigned char>(static_cast<int64_t>(
      std::max(score_scratch_bytes(state, score_part(p), seq),
               select_scratch_bytes(seq.prefix_len(p.window), p.selected.num_sets))));
  return with_estimate(std::max(steps.used(), attend_scratch_bytes(state, task)));
}

tsp_status_t run_sequence(tsp_context_t& ctx, const tsp_prefill_params_t& p, const Seq& seq,
                          const Layout& layout) {
  State& state = state_of(ctx);
  const cudaStream_t stream = stream_of(ctx);
  tsp_attend_params_t a = attend_params(p);
  if (has_pattern(p)) a.blocks = layout.blocks;
  const Sets wanted = make_sets(p.selected, seq, p.q.heads);
  const auto name_sets = [&](const Sets& sets) {
    if (wanted.indices == nullptr && wanted.kept == nullptr) return TSP_OK;
    return launch_copy_sets(sets, wanted, p.selected.num_sets, seq.k_len, stream);
  };
  // Before attend, whose end is the call's.
  const auto add_tally = [&](Sets sets, int32_t num_sets) {
    if (p.tally == nullptr) return TSP_OK;
    sets.heads_per_set = static_cast<int32_t>(p.q.heads) / num_sets;
    const int32_t near = p.dropped == TSP_DROPPED_LOCAL ? p.sink + p.band : 0;
    return launch_tally({sets, seq.q_len, seq.k_len, near, p.tally}, num_sets, stream);
  };
  /// Over the memory of whatever came before, which has run.
  const auto attend_by_pattern = [&](AttendTask task, int32_t num_lists) {
    task.own_lists = has_pattern(p);
    task.hole = layout.tables.hole;
    if (has_pattern(p)) {
      tsp_estimate_params_t e = estimate_part(p);
      e.blocks = layout.blocks;
      TSP_RETURN_IF_ERROR(
          run_estimate(estimate_call(state, e, task.sets, num_lists), seq, layout.shared, stream));
    }
    return run_attend(state, task, layout.shared, stream);
  };
  if (dense(p, seq)) {
    TSP_RETURN_IF_ERROR(name_sets(Sets{}));
    TSP_RETURN_IF_ERROR(add_tally(Sets{}, 1));
    return attend_by_pattern(dense_task(a, seq), 0);
  }
  if (!chooses(p)) {
    const Sets given = make_sets(p.given, seq, p.q.heads);
    TSP_RETURN_IF_ERROR(name_sets(given));
    TSP_RETURN_IF_ERROR(add_tally(given, p.given.num_sets));
    return attend_by_pattern(sparse_task(a, seq, given, p.given.num_sets), p.given.num_sets);
  }
  const int32_t prefix_len = seq.prefix_len(p.window);
  Scratch steps(layout.shared);
  const Values scores{steps.take<float>(p.q.heads * prefix_len), 1, prefix_len};
  void* const scratch = layout.shared + steps.used();
  const AttendTask task = sparse_task(a, seq, sets_of(p, seq, layout), p.selected.num_sets);
  TSP_RETURN_IF_ERROR(run_score(state, score_part(p), seq, scores, scratch, stream));
  const SelectTask select{scores,        task.sets, static_cast<int32_t>(p.q.heads),
                          task.num_sets, p.window,  p.min_tokens,
                          p.coverage,    p.keep};
  TSP_RETURN_IF_ERROR(run_select(state, select, seq, scratch, stream));
  TSP_RETURN_IF_ERROR(add_tally(task.sets, task.num_sets));
  return attend_by_pattern(task, task.num_sets);
}

}  // namespace

tsp_status_t check_prefill(const tsp_context_t&, const tsp_prefill_params_t& p) {
  if (!has_pattern(p)) return TSP_OK;
  if (p.pattern.block != kKeyBlock) {
    return fail(TSP_UNSUPPORTED, "pattern.block: backend cuda attends blocks of %d, got %d",
                kKeyBlock, p.pattern.block);
  }
  if (p.pattern.kind == TSP_PATTERN_MINFERENCE) {
    return fail(TSP_UNSUPPORTED,
                "pattern.kind: backend cuda attends no single columns, which %d (minference) reads",
                p.pattern.kind);
  }
  return TSP_OK;
}

size_t prefill_workspace(const tsp_context_t& ctx, const tsp_prefill_params_t& p) {
  const DeviceGuard guard(ctx);
  size_t shared = 0;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    shared = std::max(shared, shared_bytes(ctx, p, seq_at(p.batch, b)));
  }
  return place(p, shared, nullptr).bytes;
}

tsp_status_t prefill(tsp_context_t& ctx, const tsp_prefill_params_t& p) {
  const DeviceGuard guard(ctx);
  TSP_RETURN_IF_ERROR(check_attend_memory(ctx, attend_params(p)));
  TSP_RETURN_IF_ERROR(check_set_memory(ctx, "given", p.given));
  if (p.tally != nullptr) TSP_RETURN_IF_ERROR(check_pointer(ctx, "tally", p.tally));
  const Layout layout = place(p, 0, p.workspace);
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    tsp_prefill_params_t vetted = p;
    TSP_RETURN_IF_ERROR(vet_tables(layout.tables, seq, vetted.k, vetted.v, stream_of(ctx)));
    TSP_RETURN_IF_ERROR(run_sequence(ctx, vetted, seq, layout));
  }
  return TSP_OK;
}

}  // namespace tsp::cuda
