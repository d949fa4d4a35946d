// SPDX-License-Identifier: MIT
#include "tokensparse/attend.h"

#include "dispatch/blocks.h"
#include "dispatch/checks.h"
#include "dispatch/overlap.h"

namespace tsp {
namespace {

tsp_status_t normalise(const tsp_context_t* ctx, const tsp_attend_params_t* in, bool data,
                       tsp_attend_params_t& p, SingleBatch& single) {
  TSP_RETURN_IF_ERROR(check_context(ctx, &OpTable::attend, "attend"));
  TSP_RETURN_IF_ERROR(read_params(in, &p));
  TSP_RETURN_IF_ERROR(check_qkv_out(*ctx, {p.q, p.k, p.v, p.out, p.lse}, data, p.batch, single));
  TSP_RETURN_IF_ERROR(check_scale(&p.scale, p.q.dim));
  TSP_RETURN_IF_ERROR(check_dropped(p.dropped, p.band, p.sink));
  TSP_RETURN_IF_ERROR(check_precision(p.precision));
  if (p.selected.indices != nullptr) {
    if (data && p.selected.kept == nullptr) {
      return fail(TSP_INVALID_ARGUMENT, "selected.kept: must not be null with indices");
    }
    TSP_RETURN_IF_ERROR(
        check_sets(*ctx, "selected", p.selected, p.batch, p.q.heads, p.k.heads, data));
  }
  TSP_RETURN_IF_ERROR(
      check_blocks(*ctx, p.blocks, p.selected, p.batch, p.q.heads, p.k.heads, data));
  if (data) {
    const BlockRegions blocks = block_regions(p.blocks, p.batch);
    TSP_RETURN_IF_ERROR(check_apart({{"out", p.out}, {"lse", p.lse}},
                                    {{"q", p.q},
                                     {"k", p.k},
                                     {"v", p.v},
                                     lists_region("selected.indices", p.selected, p.batch),
                                     counts_region("selected.kept", p.selected, p.batch),
                                     blocks.blocks,
                                     blocks.counts,
                                     blocks.columns,
                                     blocks.num_columns}));
  }
  return ctx->ops->check_attend == nullptr ? TSP_OK : ctx->ops->check_attend(*ctx, p);
}

size_t workspace_bytes(const tsp_context_t& ctx, const tsp_attend_params_t& p) {
  return ctx.ops->attend_workspace == nullptr ? 0 : ctx.ops->attend_workspace(ctx, p);
}

}  // namespace
}  // namespace tsp

extern "C" {

void tsp_attend_params_init(tsp_attend_params_t* params, uint32_t struct_size) {
  tsp_attend_params_t defaults{};
  defaults.band = 256;
  tsp::init_params(params, struct_size, defaults);
}

tsp_status_t tsp_attend_workspace(tsp_context_t* ctx, const tsp_attend_params_t* params,
                                  size_t* bytes) {
  tsp_attend_params_t p;
  tsp::SingleBatch single;
  TSP_RETURN_IF_ERROR(tsp::normalise(ctx, params, false, p, single));
  *bytes = tsp::workspace_bytes(*ctx, p);
  return TSP_OK;
}

tsp_status_t tsp_attend(tsp_context_t* ctx, const tsp_attend_params_t* params) {
  tsp_attend_params_t p;
  tsp::SingleBatch single;
  TSP_RETURN_IF_ERROR(tsp::normalise(ctx, params, true, p, single));
  TSP_RETURN_IF_ERROR(
      tsp::check_workspace(p.workspace, p.workspace_bytes, tsp::workspace_bytes(*ctx, p)));
  return ctx->ops->attend(*ctx, p);
}
}
