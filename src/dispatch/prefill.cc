// SPDX-License-Identifier: MIT
// One call that adapters use. A backend may bring its own; host backends are composed here from
// score, select and attend over one workspace: [scores][indices][kept][the largest op's own]. With
// sets that the caller gives, attend alone: [kept][attend's own].
#include "tokensparse/prefill.h"

#include <numeric>

#include "dispatch/checks.h"

namespace tsp {
namespace {

tsp_status_t check_given(const tsp_context_t& ctx, const tsp_prefill_params_t& p, bool data) {
  if (data && p.given.kept == nullptr) {
    return fail(TSP_INVALID_ARGUMENT, "given.kept: must not be null with indices");
  }
  return check_sets(ctx, "given", p.given, p.batch, p.q.heads, p.k.heads, data);
}

tsp_status_t normalise(const tsp_context_t* ctx, const tsp_prefill_params_t* in, bool data,
                       tsp_prefill_params_t& p, SingleBatch& single) {
  TSP_RETURN_IF_ERROR(check_context(ctx));
  TSP_RETURN_IF_ERROR(read_params(in, &p));
  TSP_RETURN_IF_ERROR(check_qkv_out({p.q, p.k, p.v, p.out, p.lse}, data, p.batch, single));
  TSP_RETURN_IF_ERROR(check_scale(&p.scale, p.q.dim));
  TSP_RETURN_IF_ERROR(check_dropped(p.dropped, p.band, p.sink));
  TSP_RETURN_IF_ERROR(check_precision(p.precision));
  TSP_RETURN_IF_ERROR(check_shares(p.coverage, p.keep));
  TSP_RETURN_IF_ERROR(check_range("window", p.window, 1, 1 << 20));
  TSP_RETURN_IF_ERROR(check_pool(p.pool));
  TSP_RETURN_IF_ERROR(check_range("min_tokens", p.min_tokens, 0, 1 << 30));
  TSP_RETURN_IF_ERROR(check_range("share", p.share, TSP_SHARE_HEAD, TSP_SHARE_LAYER));
  TSP_RETURN_IF_ERROR(check_range("when", p.when, TSP_WHEN_ALWAYS, TSP_WHEN_PAYS));
  TSP_RETURN_IF_ERROR(check_reserved("reserved2", p.reserved2));
  const bool chosen = p.given.indices == nullptr;
  if (!chosen) TSP_RETURN_IF_ERROR(check_given(*ctx, p, data));
  const int32_t sets = chosen ? num_sets_for(p.share, p.q.heads, p.k.heads) : p.given.num_sets;
  if (p.selected.indices != nullptr) {
    if (p.selected.num_sets != sets) {
      return fail(TSP_INVALID_ARGUMENT, "selected.num_sets: must be %d for %s, got %d", sets,
                  chosen ? "this share" : "the given sets", p.selected.num_sets);
    }
    return check_sets(*ctx, "selected", p.selected, p.batch, p.q.heads, p.k.heads, false);
  }
  p.selected.num_sets = sets;
  p.selected.set_stride = longest_k(p.batch);
  p.selected.seq_stride = sets * p.selected.set_stride;
  return TSP_OK;
}

/// `kept` as in OpTable::prefill_pays.
bool pays(const tsp_context_t& ctx, const tsp_prefill_params_t& p, const Seq& seq, int32_t kept) {
  return p.when == TSP_WHEN_ALWAYS || ctx.ops->prefill_pays == nullptr ||
         ctx.ops->prefill_pays(ctx, p, seq, kept);
}

/// Nothing can be dropped, or dropping it cannot pay: no score is needed.
bool is_dense(const tsp_context_t& ctx, const tsp_prefill_params_t& p) {
  if (p.given.indices != nullptr) return false;
  if (p.keep == 0 && p.coverage == 0) return true;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    if (seq.k_len > int64_t{p.min_tokens} + seq.window(p.window) && pays(ctx, p, seq, -1)) {
      return false;
    }
  }
  return true;
}

size_t align64(size_t bytes) { return (bytes + 63) / 64 * 64; }

/// The composed prefill's ops and where their data lies in the workspace.
struct Plan {
  tsp_score_params_t score;
  tsp_select_params_t select;
  tsp_attend_params_t attend;
  size_t scores_bytes, indices_bytes, kept_bytes, op_bytes;
  size_t total() const { return scores_bytes + indices_bytes + kept_bytes + op_bytes; }
};

tsp_attend_params_t attend_params(const tsp_prefill_params_t& p) {
  tsp_attend_params_t a;
  tsp_attend_params_init(&a, sizeof a);
  a.scale = p.scale;
  a.dropped = p.dropped;
  a.band = p.band;
  a.sink = p.sink;
  a.precision = p.precision;
  a.q = p.q;
  a.k = p.k;
  a.v = p.v;
  a.out = p.out;
  a.lse = p.lse;
  a.batch = p.batch;
  return a;
}

Plan make_plan(const tsp_context_t& ctx, const tsp_prefill_params_t& p) {
  Plan plan{};
  const auto bytes_of = [&](auto* fn, const auto& params) {
    return fn == nullptr ? size_t{0} : fn(ctx, params);
  };
  const auto num_seqs = static_cast<size_t>(p.batch.num_seqs);
  if (p.selected.kept == nullptr) plan.kept_bytes = align64(num_seqs * sizeof(int32_t));
  plan.attend = attend_params(p);
  if (p.given.indices != nullptr) {
    plan.attend.selected = p.given;
    plan.op_bytes = bytes_of(ctx.ops->attend_workspace, plan.attend);
    return plan;
  }
  const int64_t prefix = total_prefix(p.batch, p.window);
  tsp_score_params_t& s = plan.score;
  tsp_score_params_init(&s, sizeof s);
  s.window = p.window;
  s.pool = p.pool;
  s.scale = p.scale;
  s.precision = p.precision;
  s.q = p.q;
  s.k = p.k;
  s.batch = p.batch;
  s.scores.dtype = TSP_F32;
  s.scores.tokens = prefix;
  s.scores.heads = p.q.heads;
  s.scores.dim = 1;
  s.scores.token_stride = 1;
  s.scores.head_stride = prefix;
  s.scores.dim_stride = 1;

  tsp_select_params_t& l = plan.select;
  tsp_select_params_init(&l, sizeof l);
  l.window = p.window;
  l.min_tokens = p.min_tokens;
  l.share = p.share;
  l.coverage = p.coverage;
  l.keep = p.keep;
  l.num_kv_heads = static_cast<int32_t>(p.k.heads);
  l.batch = p.batch;
  l.scores = s.scores;
  l.selected = p.selected;

  plan.attend.selected = p.selected;
  // Any non-null list makes attend's workspace the one for selected tokens.
  static int32_t placeholder = 0;
  if (plan.attend.selected.indices == nullptr) plan.attend.selected.indices = &placeholder;

  plan.scores_bytes = align64(static_cast<size_t>(prefix * p.q.heads) * sizeof(float));
  if (p.selected.indices == nullptr) {
    plan.indices_bytes =
        align64(num_seqs * static_cast<size_t>(p.selected.seq_stride) * sizeof(int32_t));
  }
  plan.op_bytes =
      std::max({bytes_of(ctx.ops->score_workspace, s), bytes_of(ctx.ops->select_workspace, l),
                bytes_of(ctx.ops->attend_workspace, plan.attend)});
  return plan;
}

/// The lists that keep all of a sequence, where the caller wants lists.
void name_every_token(const tsp_index_sets_t& selected, const Seq& seq) {
  for (int32_t set = 0; selected.indices != nullptr && set < selected.num_sets; ++set) {
    int32_t* const indices = mutable_set_indices(selected, seq.index, set);
    std::iota(indices, indices + seq.k_len, 0);
  }
}

tsp_status_t run_dense(tsp_context_t& ctx, const tsp_prefill_params_t& p) {
  tsp_attend_params_t a = attend_params(p);
  a.workspace = p.workspace;
  a.workspace_bytes = p.workspace_bytes;
  TSP_RETURN_IF_ERROR(ctx.ops->attend(ctx, a));
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    if (p.selected.kept != nullptr) p.selected.kept[b] = seq.k_len;
    name_every_token(p.selected, seq);
  }
  return TSP_OK;
}

/// Attends to what is kept; a sequence that leaving tokens out does not pay for keeps all. `sets`
/// is what was chosen or given, `kept` a copy of its counts that may be changed.
tsp_status_t attend_kept(tsp_context_t& ctx, const tsp_prefill_params_t& p,
                         tsp_attend_params_t& attend, tsp_index_sets_t sets, int32_t* kept) {
  bool all_kept = true;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    if (!pays(ctx, p, seq, -1) || !pays(ctx, p, seq, kept[b])) kept[b] = seq.k_len;
    all_kept = all_kept && kept[b] == seq.k_len;
  }
  sets.kept = kept;
  attend.selected = sets;
  // The same bits as the lists that name every token, without their gather.
  if (all_kept) attend.selected.indices = nullptr;
  TSP_RETURN_IF_ERROR(ctx.ops->attend(ctx, attend));
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    if (kept[b] == seq.k_len) {
      name_every_token(p.selected, seq);
      continue;
    }
    if (p.selected.indices == nullptr || p.given.indices == nullptr) continue;
    for (int32_t set = 0; set < sets.num_sets; ++set) {
      std::copy_n(set_indices(sets, b, set), kept[b], mutable_set_indices(p.selected, b, set));
    }
  }
  return TSP_OK;
}

tsp_status_t run_composed(tsp_context_t& ctx, const tsp_prefill_params_t& p) {
  if (is_dense(ctx, p)) return run_dense(ctx, p);
  Plan plan = make_plan(ctx, p);
  auto* at = static_cast<unsigned char*>(p.workspace);
  const auto take = [&](size_t bytes) {
    unsigned char* const here = at;
    at += bytes;
    return static_cast<void*>(here);
  };
  plan.score.scores.data = plan.select.scores.data = take(plan.scores_bytes);
  tsp_index_sets_t selected = p.selected;
  if (plan.indices_bytes != 0) selected.indices = static_cast<int32_t*>(take(plan.indices_bytes));
  if (plan.kept_bytes != 0) selected.kept = static_cast<int32_t*>(take(plan.kept_bytes));
  plan.select.selected = selected;
  plan.score.workspace = plan.select.workspace = plan.attend.workspace = at;
  plan.score.workspace_bytes = plan.select.workspace_bytes = plan.attend.workspace_bytes =
      plan.op_bytes;

  if (p.given.indices != nullptr) {
    std::copy_n(p.given.kept, p.batch.num_seqs, selected.kept);
    return attend_kept(ctx, p, plan.attend, p.given, selected.kept);
  }
  TSP_RETURN_IF_ERROR(ctx.ops->score(ctx, plan.score));
  TSP_RETURN_IF_ERROR(ctx.ops->select(ctx, plan.select));
  return attend_kept(ctx, p, plan.attend, selected, selected.kept);
}

size_t workspace_bytes(const tsp_context_t& ctx, const tsp_prefill_params_t& p) {
  if (ctx.ops->prefill != nullptr) {
    return ctx.ops->prefill_workspace == nullptr ? 0 : ctx.ops->prefill_workspace(ctx, p);
  }
  const size_t dense =
      ctx.ops->attend_workspace == nullptr ? 0 : ctx.ops->attend_workspace(ctx, attend_params(p));
  return is_dense(ctx, p) ? dense : std::max(dense, make_plan(ctx, p).total());
}

tsp_status_t check_backend(const tsp_context_t& ctx, const tsp_prefill_params_t& p) {
  if (ctx.ops->check_attend != nullptr) {
    TSP_RETURN_IF_ERROR(ctx.ops->check_attend(ctx, attend_params(p)));
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
  *bytes = tsp::workspace_bytes(*ctx, p);
  return TSP_OK;
}

tsp_status_t tsp_prefill(tsp_context_t* ctx, const tsp_prefill_params_t* params) {
  tsp_prefill_params_t p;
  tsp::SingleBatch single;
  TSP_RETURN_IF_ERROR(tsp::normalise(ctx, params, true, p, single));
  TSP_RETURN_IF_ERROR(tsp::check_backend(*ctx, p));
  TSP_RETURN_IF_ERROR(
      tsp::check_workspace(p.workspace, p.workspace_bytes, tsp::workspace_bytes(*ctx, p)));
  if (ctx->ops->prefill != nullptr) return ctx->ops->prefill(*ctx, p);
  return tsp::run_composed(*ctx, p);
}
}
