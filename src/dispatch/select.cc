// SPDX-License-Identifier: MIT
#include "tokensparse/select.h"

#include "dispatch/checks.h"
#include "dispatch/overlap.h"

namespace tsp {
namespace {

tsp_status_t normalise(const tsp_context_t* ctx, const tsp_select_params_t* in, bool data,
                       tsp_select_params_t& p, SingleBatch& single) {
  TSP_RETURN_IF_ERROR(check_context(ctx, &OpTable::select, "select"));
  TSP_RETURN_IF_ERROR(read_params(in, &p));
  TSP_RETURN_IF_ERROR(check_reserved("reserved", p.reserved));
  TSP_RETURN_IF_ERROR(check_range("window", p.window, 1, 1 << 20));
  TSP_RETURN_IF_ERROR(check_range("min_tokens", p.min_tokens, 0, 1 << 30));
  TSP_RETURN_IF_ERROR(check_range("share", p.share, TSP_SHARE_HEAD, TSP_SHARE_LAYER));
  TSP_RETURN_IF_ERROR(check_shares(p.coverage, p.keep));
  if (p.batch.num_seqs == 0) {
    TSP_RETURN_IF_ERROR(check_range("q_len", p.q_len, 1, 1 << 30));
    TSP_RETURN_IF_ERROR(check_range("k_len", p.k_len, 1, 1 << 30));
  }
  const bool single_seq = p.batch.num_seqs == 0;
  TSP_RETURN_IF_ERROR(
      check_batch(*ctx, p.batch, single, single_seq ? p.q_len : -1, single_seq ? p.k_len : -1));
  const int64_t prefix = total_prefix(p.batch, p.window);
  TSP_RETURN_IF_ERROR(
      check_per_row("scores", p.scores, prefix, p.scores.heads, data && prefix > 0));
  TSP_RETURN_IF_ERROR(check_range("num_kv_heads", p.num_kv_heads, 1, p.scores.heads));
  if (p.scores.heads % p.num_kv_heads != 0) {
    return fail(TSP_INVALID_ARGUMENT, "num_kv_heads: must divide the query heads (%d), got %d",
                static_cast<int>(p.scores.heads), p.num_kv_heads);
  }
  const int32_t sets = num_sets_for(p.share, p.scores.heads, p.num_kv_heads);
  if (p.selected.num_sets != sets) {
    return fail(TSP_INVALID_ARGUMENT, "selected.num_sets: must be %d for this share, got %d", sets,
                p.selected.num_sets);
  }
  if (data && (p.selected.indices == nullptr || p.selected.kept == nullptr)) {
    return fail(TSP_INVALID_ARGUMENT, "selected.%s: must not be null",
                p.selected.indices == nullptr ? "indices" : "kept");
  }
  TSP_RETURN_IF_ERROR(
      check_sets(*ctx, "selected", p.selected, p.batch, p.scores.heads, p.num_kv_heads, false));
  if (!data) return TSP_OK;
  return check_apart({lists_region("selected.indices", p.selected, p.batch),
                      counts_region("selected.kept", p.selected, p.batch)},
                     {{"scores", p.scores}});
}

size_t workspace_bytes(const tsp_context_t& ctx, const tsp_select_params_t& p) {
  return ctx.ops->select_workspace == nullptr ? 0 : ctx.ops->select_workspace(ctx, p);
}

}  // namespace
}  // namespace tsp

extern "C" {

void tsp_select_params_init(tsp_select_params_t* params, uint32_t struct_size) {
  tsp_select_params_t defaults{};
  defaults.window = 128;
  defaults.min_tokens = 1024;
  defaults.coverage = 0.005f;
  tsp::init_params(params, struct_size, defaults);
}

tsp_status_t tsp_select_workspace(tsp_context_t* ctx, const tsp_select_params_t* params,
                                  size_t* bytes) {
  tsp_select_params_t p;
  tsp::SingleBatch single;
  TSP_RETURN_IF_ERROR(tsp::normalise(ctx, params, false, p, single));
  *bytes = tsp::workspace_bytes(*ctx, p);
  return TSP_OK;
}

tsp_status_t tsp_select(tsp_context_t* ctx, const tsp_select_params_t* params) {
  tsp_select_params_t p;
  tsp::SingleBatch single;
  TSP_RETURN_IF_ERROR(tsp::normalise(ctx, params, true, p, single));
  TSP_RETURN_IF_ERROR(
      tsp::check_workspace(p.workspace, p.workspace_bytes, tsp::workspace_bytes(*ctx, p)));
  return ctx->ops->select(*ctx, p);
}
}
