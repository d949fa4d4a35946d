// SPDX-License-Identifier: MIT
// One call that adapters use. A backend may bring its own; host backends are composed here from
// score, select, estimate and attend over one workspace: [scores][indices][kept][block lists][the
// largest op's own]. With sets that the caller gives there are no scores and no indices, without a
// pattern no block lists.
#include "tokensparse/prefill.h"

#include <numeric>

#include "core/prefill_parts.h"
#include "core/workspace.h"
#include "dispatch/pattern_pays.h"
#include "dispatch/pilot.h"
#include "dispatch/prefill_checks.h"
#include "dispatch/tally.h"

namespace tsp {
namespace {

/// `kept` and `chosen` as in OpTable::prefill_pays.
bool pays(const tsp_context_t& ctx, const tsp_prefill_params_t& p, const Seq& seq, int32_t kept,
          bool chosen) {
  return p.when == TSP_WHEN_ALWAYS || ctx.ops->prefill_pays == nullptr ||
         ctx.ops->prefill_pays(ctx, p, seq, kept, chosen);
}

/// Nothing can be dropped, or dropping it cannot pay: no score is needed.
bool is_exact(const tsp_context_t& ctx, const tsp_prefill_params_t& p) {
  if (p.given.indices != nullptr) return false;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    if (!is_dense(p, seq) && pays(ctx, p, seq, -1, false)) return false;
  }
  return true;
}

/// The composed prefill's ops, with their data in the workspace.
struct Plan {
  bool exact;  // attend alone, without sets
  tsp_score_params_t score;
  tsp_select_params_t select;
  tsp_estimate_params_t estimate;
  tsp_attend_params_t attend;
  tsp_index_sets_t sets;  // chosen or given; kept may be changed
  Pilot pilot;
  int32_t* guesses;  // [num_seqs] of kept, before the choice; null: none
  size_t bytes;
};

void give_scores(Plan& plan, const tsp_prefill_params_t& p, Workspace<>& workspace) {
  const int64_t prefix = total_prefix(p.batch, p.window);
  tsp_tensor_t& scores = plan.score.scores;
  scores.data = workspace.take<float>(prefix * p.q.heads);
  scores.dtype = TSP_F32;
  scores.tokens = prefix;
  scores.heads = p.q.heads;
  scores.dim = 1;
  scores.token_stride = 1;
  scores.head_stride = prefix;
  scores.dim_stride = 1;
  plan.select.scores = scores;
}

/// The sets' memory: the caller's where he wants the result.
void give_sets(Plan& plan, const tsp_prefill_params_t& p, Workspace<>& workspace) {
  const bool chosen = p.given.indices == nullptr;
  plan.sets = chosen ? p.selected : p.given;
  if (plan.sets.indices == nullptr) {
    plan.sets.indices = workspace.take<int32_t>(p.batch.num_seqs * p.selected.seq_stride);
  }
  plan.sets.kept =
      p.selected.kept != nullptr ? p.selected.kept : workspace.take<int32_t>(p.batch.num_seqs);
  plan.select.selected = plan.attend.selected = plan.sets;
}

/// The block lists' memory, with room for what the longest sequence may be given.
void give_blocks(Plan& plan, const tsp_prefill_params_t& p, Workspace<>& workspace) {
  plan.estimate = estimate_part(p);
  tsp_block_sets_t& s = plan.estimate.blocks;
  s.block = p.pattern.block;
  s.num_sets = num_sets_for(p.pattern.share, p.q.heads, p.k.heads);
  const int64_t all_sets = int64_t{p.batch.num_seqs} * s.num_sets;
  s.row_stride = (int64_t{longest_k(p.batch)} + s.block - 1) / s.block;
  s.count_set_stride = (int64_t{longest_q(p.batch)} + s.block - 1) / s.block;
  s.set_stride = s.count_set_stride * s.row_stride;
  s.seq_stride = s.num_sets * s.set_stride;
  s.count_seq_stride = s.num_sets * s.count_set_stride;
  s.blocks = workspace.take<int32_t>(all_sets * s.set_stride);
  s.counts = workspace.take<int32_t>(all_sets * s.count_set_stride);
  if (p.pattern.kind == TSP_PATTERN_MINFERENCE) {
    s.column_set_stride = std::min(std::max(p.pattern.vertical, 30), longest_k(p.batch));
    s.column_seq_stride = s.num_sets * s.column_set_stride;
    s.columns = workspace.take<int32_t>(all_sets * s.column_set_stride);
    s.num_columns = workspace.take<int32_t>(all_sets);
  }
  plan.attend.blocks = s;
}

Plan make_plan(const tsp_context_t& ctx, const tsp_prefill_params_t& p, void* base) {
  Plan plan{};
  Workspace<> workspace(base);
  const auto bytes_of = [&](auto* fn, const auto& params) {
    return fn == nullptr ? size_t{0} : fn(ctx, params);
  };
  plan.exact = is_exact(ctx, p);
  plan.attend = attend_part(p);
  int32_t any = 0;  // not null also where memory is only counted
  if (has_pattern(p)) give_blocks(plan, p, workspace);
  tsp_attend_params_t attend = plan.attend;
  if (has_pattern(p)) attend.blocks.blocks = attend.blocks.counts = &any;
  if (attend.blocks.column_set_stride > 0) attend.blocks.columns = attend.blocks.num_columns = &any;
  // Where everything is kept in the end, attend runs without sets.
  size_t op_bytes = bytes_of(ctx.ops->attend_workspace, attend);
  if (!plan.exact) {
    const bool chosen = p.given.indices == nullptr;
    if (chosen) {
      plan.score = score_part(p);
      plan.select = select_part(p);
      give_scores(plan, p, workspace);
    }
    if (wants_pilot(ctx, p)) {
      plan.pilot = make_pilot(ctx, p, workspace);
      plan.guesses = workspace.take<int32_t>(p.batch.num_seqs);
      op_bytes = std::max(op_bytes, plan.pilot.score_bytes);
    }
    give_sets(plan, p, workspace);
    plan.estimate.selected = attend.selected = plan.sets;
    attend.selected.indices = &any;
    op_bytes = std::max(op_bytes, bytes_of(ctx.ops->attend_workspace, attend));
    if (chosen) {
      op_bytes = std::max({op_bytes, bytes_of(ctx.ops->score_workspace, plan.score),
                           bytes_of(ctx.ops->select_workspace, plan.select)});
    }
  }
  if (has_pattern(p)) {
    tsp_estimate_params_t estimate = plan.estimate;
    op_bytes = std::max(op_bytes, bytes_of(ctx.ops->estimate_workspace, estimate));
    if (!plan.exact) {
      estimate.selected.indices = &any;
      op_bytes = std::max(op_bytes, bytes_of(ctx.ops->estimate_workspace, estimate));
    }
  }
  plan.score.workspace = plan.select.workspace = plan.estimate.workspace = plan.attend.workspace =
      workspace.take<unsigned char>(op_bytes);
  plan.score.workspace_bytes = plan.select.workspace_bytes = plan.estimate.workspace_bytes =
      plan.attend.workspace_bytes = op_bytes;
  plan.bytes = workspace.used();
  return plan;
}

/// The lists that keep all of a sequence, where the caller wants lists.
void name_every_token(const tsp_index_sets_t& selected, const Seq& seq) {
  for (int32_t set = 0; selected.indices != nullptr && set < selected.num_sets; ++set) {
    int32_t* const indices = mutable_set_indices(selected, seq.index, set);
    std::iota(indices, indices + seq.k_len, 0);
  }
}

/// What every sequence keeps, to the caller: all of it where tokens cannot be left out.
void name_kept(const tsp_prefill_params_t& p, const tsp_index_sets_t* sets) {
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    const int32_t kept = sets == nullptr ? seq.k_len : sets->kept[b];
    if (p.selected.kept != nullptr) p.selected.kept[b] = kept;
    if (kept == seq.k_len) {
      name_every_token(p.selected, seq);
    } else if (p.selected.indices != nullptr && p.given.indices != nullptr) {
      for (int32_t set = 0; set < p.given.num_sets; ++set) {
        std::copy_n(set_indices(p.given, b, set), kept, mutable_set_indices(p.selected, b, set));
      }
    }
  }
}

tsp_status_t attend_by_pattern(tsp_context_t& ctx, const tsp_prefill_params_t& p, Plan& plan) {
  tsp_attend_params_t& attend = plan.attend;
  if (has_pattern(p)) {
    bool pays = pattern_pays(ctx, p, attend, false);
    if (pays) {
      plan.estimate.selected = attend.selected;
      TSP_RETURN_IF_ERROR(ctx.ops->estimate(ctx, plan.estimate));
      pays = pattern_pays(ctx, p, attend, true);
    }
    if (!pays) attend.blocks = {};
  }
  add_tally(p, attend);
  return ctx.ops->attend(ctx, attend);
}

/// Guesses what each sequence would keep. `*promising`: that leaving tokens out of any pays.
tsp_status_t look(tsp_context_t& ctx, const tsp_prefill_params_t& p, Plan& plan, bool* promising) {
  *promising = !wants_pilot(ctx, p);
  for (int32_t b = 0; b < p.batch.num_seqs && wants_pilot(ctx, p); ++b) {
    const Seq seq = seq_at(p.batch, b);
    plan.guesses[b] = seq.k_len;
    if (is_dense(p, seq) || !pays(ctx, p, seq, -1, false)) continue;
    TSP_RETURN_IF_ERROR(
        guess_kept(ctx, p, seq, plan.pilot, plan.score.workspace, &plan.guesses[b]));
    *promising = *promising || pays(ctx, p, seq, plan.guesses[b], false);
  }
  return TSP_OK;
}

/// Choosing tokens is expected to pay, by what is known before it.
bool expected_to_pay(const tsp_context_t& ctx, const tsp_prefill_params_t& p, const Plan& plan,
                     const Seq& seq) {
  if (p.given.indices != nullptr) return true;
  if (!pays(ctx, p, seq, -1, false)) return false;
  return plan.guesses == nullptr || pays(ctx, p, seq, plan.guesses[seq.index], false);
}

tsp_status_t attend_to_all(tsp_context_t& ctx, const tsp_prefill_params_t& p, Plan& plan) {
  plan.attend.selected.indices = nullptr;
  TSP_RETURN_IF_ERROR(attend_by_pattern(ctx, p, plan));
  name_kept(p, nullptr);
  return TSP_OK;
}

tsp_status_t run_composed(tsp_context_t& ctx, const tsp_prefill_params_t& p, Plan& plan) {
  if (plan.exact) return attend_to_all(ctx, p, plan);
  bool promising = false;
  TSP_RETURN_IF_ERROR(look(ctx, p, plan, &promising));
  if (!promising) return attend_to_all(ctx, p, plan);
  int32_t* const kept = plan.sets.kept;
  if (p.given.indices != nullptr) {
    std::copy_n(p.given.kept, p.batch.num_seqs, kept);
  } else {
    TSP_RETURN_IF_ERROR(ctx.ops->score(ctx, plan.score));
    TSP_RETURN_IF_ERROR(ctx.ops->select(ctx, plan.select));
  }
  bool all_kept = true;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    const bool sparse = expected_to_pay(ctx, p, plan, seq) && pays(ctx, p, seq, kept[b], true);
    if (!sparse) kept[b] = seq.k_len;
    all_kept = all_kept && kept[b] == seq.k_len;
  }
  // The same bits as the lists that name every token, without their gather.
  if (all_kept) plan.attend.selected.indices = nullptr;
  TSP_RETURN_IF_ERROR(attend_by_pattern(ctx, p, plan));
  name_kept(p, &plan.sets);
  return TSP_OK;
}

/// Of a backend that brings its own prefill.
size_t own_workspace(const tsp_context_t& ctx, const tsp_prefill_params_t& p) {
  return ctx.ops->prefill_workspace == nullptr ? 0 : ctx.ops->prefill_workspace(ctx, p);
}

tsp_status_t check_backend(const tsp_context_t& ctx, const tsp_prefill_params_t& p) {
  if (ctx.ops->check_attend != nullptr) {
    TSP_RETURN_IF_ERROR(ctx.ops->check_attend(ctx, attend_part(p)));
  }
  if (has_pattern(p) && ctx.ops->check_estimate != nullptr) {
    TSP_RETURN_IF_ERROR(ctx.ops->check_estimate(ctx, estimate_part(p)));
  }
  return ctx.ops->check_prefill == nullptr ? TSP_OK : ctx.ops->check_prefill(ctx, p);
}

}  // namespace
}  // namespace tsp

extern "C" {

void tsp_prefill_params_init(tsp_prefill_params_t* params, uint32_t struct_size) {
  tsp_prefill_params_t defaults{};
  defaults.coverage = 0.005f;
  defaults.window = 128;
  defaults.pool = 7;
  defaults.min_tokens = 1024;
  defaults.band = 256;
  tsp::init_params(params, struct_size, defaults);
}

tsp_status_t tsp_prefill_workspace(tsp_context_t* ctx, const tsp_prefill_params_t* params,
                                   size_t* bytes) {
  tsp_prefill_params_t p;
  tsp::SingleBatch single;
  TSP_RETURN_IF_ERROR(tsp::normalise(ctx, params, false, p, single));
  TSP_RETURN_IF_ERROR(tsp::check_backend(*ctx, p));
  if (ctx->ops->prefill == nullptr) {
    *bytes = tsp::make_plan(*ctx, p, nullptr).bytes;
  } else {
    *bytes = tsp::own_workspace(*ctx, p);
  }
  return TSP_OK;
}

tsp_status_t tsp_prefill(tsp_context_t* ctx, const tsp_prefill_params_t* params) {
  tsp_prefill_params_t p;
  tsp::SingleBatch single;
  TSP_RETURN_IF_ERROR(tsp::normalise(ctx, params, true, p, single));
  TSP_RETURN_IF_ERROR(tsp::check_backend(*ctx, p));
  if (ctx->ops->prefill == nullptr) {
    tsp::Plan plan = tsp::make_plan(*ctx, p, p.workspace);
    TSP_RETURN_IF_ERROR(tsp::check_workspace(p.workspace, p.workspace_bytes, plan.bytes));
    return tsp::run_composed(*ctx, p, plan);
  }
  TSP_RETURN_IF_ERROR(
      tsp::check_workspace(p.workspace, p.workspace_bytes, tsp::own_workspace(*ctx, p)));
  return ctx->ops->prefill(*ctx, p);
}

tsp_status_t tsp_prefill_pays(tsp_context_t* ctx, int32_t rows, int32_t keys, int32_t q_heads,
                              int32_t head_dim, int32_t* pays) {
  TSP_RETURN_IF_ERROR(tsp::check_context(ctx));
  if (pays == nullptr) return tsp::fail(TSP_INVALID_ARGUMENT, "pays: must not be null");
  if (rows < 0 || keys < rows) {
    return tsp::fail(TSP_INVALID_ARGUMENT, "rows: must be between 0 and keys (%d), got %d", keys,
                     rows);
  }
  if (q_heads < 1 || head_dim < 1) {
    return tsp::fail(TSP_INVALID_ARGUMENT, "%s: must be positive, got %d",
                     q_heads < 1 ? "q_heads" : "head_dim", q_heads < 1 ? q_heads : head_dim);
  }
  const auto may_pay = ctx->ops->may_pay;
  *pays = may_pay == nullptr || may_pay(rows, keys, q_heads, head_dim) ? 1 : 0;
  return TSP_OK;
}
}
