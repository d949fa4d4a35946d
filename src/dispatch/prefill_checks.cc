// SPDX-License-Identifier: MIT
#include "dispatch/prefill_checks.h"

#include "core/prefill_parts.h"
#include "dispatch/blocks.h"
#include "dispatch/overlap.h"
#include "dispatch/pattern.h"
#include "dispatch/tally.h"

namespace tsp {
namespace {

/// `selected` may be `given` itself: then what is written is what is there.
tsp_status_t check_outputs_apart(const tsp_prefill_params_t& p) {
  Region given_lists = lists_region("given.indices", p.given, p.batch);
  Region given_counts = counts_region("given.kept", p.given, p.batch);
  if (p.given.indices == p.selected.indices && p.given.set_stride == p.selected.set_stride &&
      p.given.seq_stride == p.selected.seq_stride) {
    given_lists.view.data = nullptr;
  }
  if (p.given.kept == p.selected.kept) given_counts.view.data = nullptr;
  const BlockRegions blocks = block_regions(p.blocks, p.batch);
  tsp_tensor_t tally{};  // as four floats
  tally.data = p.tally;
  tally.tokens = 4;
  tally.heads = tally.dim = tally.token_stride = tally.head_stride = tally.dim_stride = 1;
  return check_apart({{"out", p.out},
                      {"lse", p.lse},
                      lists_region("selected.indices", p.selected, p.batch),
                      counts_region("selected.kept", p.selected, p.batch),
                      {"tally", tally}},
                     {{"q", p.q},
                      {"k", p.k},
                      {"v", p.v},
                      given_lists,
                      given_counts,
                      blocks.blocks,
                      blocks.counts,
                      blocks.columns,
                      blocks.num_columns});
}

tsp_status_t check_given(const tsp_context_t& ctx, const tsp_prefill_params_t& p, bool data) {
  if (data && p.given.kept == nullptr) {
    return fail(TSP_INVALID_ARGUMENT, "given.kept: must not be null with indices");
  }
  return check_sets(ctx, "given", p.given, p.batch, p.q.heads, p.k.heads, data);
}

/// Blocks are of entries that the caller knows: nothing may be chosen behind his back.
tsp_status_t check_blocks(const tsp_context_t& ctx, tsp_prefill_params_t& p, bool data) {
  if (p.blocks.blocks != nullptr && p.given.indices == nullptr &&
      (p.coverage != 0 || p.keep != 0)) {
    return fail(
        TSP_INVALID_ARGUMENT,
        "blocks.blocks: must be null where tokens are chosen (give `given`, or coverage = 0 "
        "and keep = 0), got coverage %g and keep %g",
        static_cast<double>(p.coverage), static_cast<double>(p.keep));
  }
  if (p.blocks.blocks != nullptr && p.when != TSP_WHEN_ALWAYS) {
    return fail(TSP_INVALID_ARGUMENT, "when: must be 0 (always) with blocks, got %d", p.when);
  }
  return tsp::check_blocks(ctx, p.blocks, p.given, p.batch, p.q.heads, p.k.heads, data);
}

/// `sets`: of the kept tokens.
tsp_status_t check_pattern_of(const tsp_context_t& ctx, const tsp_prefill_params_t& p,
                              int32_t sets) {
  if (!has_pattern(p)) return TSP_OK;
  TSP_RETURN_IF_ERROR(check_context(&ctx, &OpTable::estimate, "estimate"));
  TSP_RETURN_IF_ERROR(
      check_range("pattern.share", p.pattern.share, TSP_SHARE_HEAD, TSP_SHARE_LAYER));
  const int32_t lists = num_sets_for(p.pattern.share, p.q.heads, p.k.heads);
  TSP_RETURN_IF_ERROR(check_pattern(p.pattern, lists));
  if (p.blocks.blocks != nullptr) {
    return fail(TSP_INVALID_ARGUMENT, "blocks.blocks: must be null with a pattern");
  }
  const bool dense = p.given.indices == nullptr && p.coverage == 0 && p.keep == 0;
  if (!dense && lists % sets != 0) {
    return fail(TSP_INVALID_ARGUMENT,
                "pattern.share: its %d sets must be a multiple of the %d sets of kept tokens",
                lists, sets);
  }
  return TSP_OK;
}

}  // namespace

tsp_status_t normalise(const tsp_context_t* ctx, const tsp_prefill_params_t* in, bool data,
                       tsp_prefill_params_t& p, SingleBatch& single) {
  TSP_RETURN_IF_ERROR(check_context(ctx));
  if (ctx->ops->prefill == nullptr) {  // composed
    TSP_RETURN_IF_ERROR(check_context(ctx, &OpTable::score, "score"));
    TSP_RETURN_IF_ERROR(check_context(ctx, &OpTable::select, "select"));
    TSP_RETURN_IF_ERROR(check_context(ctx, &OpTable::attend, "attend"));
  }
  TSP_RETURN_IF_ERROR(read_params(in, &p));
  TSP_RETURN_IF_ERROR(check_qkv_out(*ctx, {p.q, p.k, p.v, p.out, p.lse}, data, p.batch, single));
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
  TSP_RETURN_IF_ERROR(check_blocks(*ctx, p, data));
  const int32_t sets = chosen ? num_sets_for(p.share, p.q.heads, p.k.heads) : p.given.num_sets;
  TSP_RETURN_IF_ERROR(check_pattern_of(*ctx, p, sets));
  TSP_RETURN_IF_ERROR(check_tally(*ctx, p));
  if (p.selected.indices != nullptr) {
    if (p.selected.num_sets != sets) {
      return fail(TSP_INVALID_ARGUMENT, "selected.num_sets: must be %d for %s, got %d", sets,
                  chosen ? "this share" : "the given sets", p.selected.num_sets);
    }
    TSP_RETURN_IF_ERROR(
        check_sets(*ctx, "selected", p.selected, p.batch, p.q.heads, p.k.heads, false));
  } else {
    p.selected.num_sets = sets;
    p.selected.set_stride = longest_k(p.batch);
    p.selected.seq_stride = sets * p.selected.set_stride;
  }
  return data ? check_outputs_apart(p) : TSP_OK;
}

}  // namespace tsp
