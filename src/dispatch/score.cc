// SPDX-License-Identifier: MIT
#include "tokensparse/score.h"

#include "dispatch/checks.h"
#include "dispatch/overlap.h"

namespace tsp {
namespace {

tsp_status_t normalise(const tsp_context_t* ctx, const tsp_score_params_t* in, bool data,
                       tsp_score_params_t& p, SingleBatch& single) {
  TSP_RETURN_IF_ERROR(check_context(ctx, &OpTable::score, "score"));
  TSP_RETURN_IF_ERROR(read_params(in, &p));
  TSP_RETURN_IF_ERROR(check_reserved("reserved", p.reserved));
  TSP_RETURN_IF_ERROR(check_tensor({.name = "q", .data = data}, p.q));
  TSP_RETURN_IF_ERROR(check_tensor({.name = "k", .paged = true, .data = data}, p.k));
  TSP_RETURN_IF_ERROR(check_heads(p.q, "k", p.k));
  TSP_RETURN_IF_ERROR(check_range("window", p.window, 1, 1 << 20));
  TSP_RETURN_IF_ERROR(check_pool(p.pool));
  TSP_RETURN_IF_ERROR(check_scale(&p.scale, p.q.dim));
  TSP_RETURN_IF_ERROR(check_precision(p.precision));
  const int64_t k_rows = p.k.block_table != nullptr ? -1 : p.k.tokens;
  TSP_RETURN_IF_ERROR(check_batch(*ctx, p.batch, single, p.q.tokens, k_rows));
  TSP_RETURN_IF_ERROR(check_block_table(*ctx, "k", p.k, p.batch));
  const int64_t prefix = total_prefix(p.batch, p.window);
  TSP_RETURN_IF_ERROR(check_per_row("scores", p.scores, prefix, p.q.heads, data && prefix > 0));
  if (data) {
    TSP_RETURN_IF_ERROR(check_apart({{"scores", p.scores}}, {{"q", p.q}, {"k", p.k}}));
  }
  return ctx->ops->check_score == nullptr ? TSP_OK : ctx->ops->check_score(*ctx, p);
}

size_t workspace_bytes(const tsp_context_t& ctx, const tsp_score_params_t& p) {
  return ctx.ops->score_workspace == nullptr ? 0 : ctx.ops->score_workspace(ctx, p);
}

}  // namespace
}  // namespace tsp

extern "C" {

void tsp_score_params_init(tsp_score_params_t* params, uint32_t struct_size) {
  tsp_score_params_t defaults{};
  defaults.window = 128;
  defaults.pool = 7;
  tsp::init_params(params, struct_size, defaults);
}

tsp_status_t tsp_score_workspace(tsp_context_t* ctx, const tsp_score_params_t* params,
                                 size_t* bytes) {
  tsp_score_params_t p;
  tsp::SingleBatch single;
  TSP_RETURN_IF_ERROR(tsp::normalise(ctx, params, false, p, single));
  *bytes = tsp::workspace_bytes(*ctx, p);
  return TSP_OK;
}

tsp_status_t tsp_score(tsp_context_t* ctx, const tsp_score_params_t* params) {
  tsp_score_params_t p;
  tsp::SingleBatch single;
  TSP_RETURN_IF_ERROR(tsp::normalise(ctx, params, true, p, single));
  TSP_RETURN_IF_ERROR(
      tsp::check_workspace(p.workspace, p.workspace_bytes, tsp::workspace_bytes(*ctx, p)));
  return ctx->ops->score(*ctx, p);
}
}
