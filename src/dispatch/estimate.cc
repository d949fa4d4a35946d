// SPDX-License-Identifier: MIT
#include "tokensparse/estimate.h"

#include <cinttypes>

#include "dispatch/checks.h"
#include "dispatch/overlap.h"
#include "dispatch/pattern.h"

namespace tsp {
namespace {

constexpr int64_t kMaxEntries = int64_t{1} << 40;

tsp_status_t check_stride(const char* name, int64_t value, int64_t least) {
  if (value >= least && value <= kMaxEntries) return TSP_OK;
  return fail(TSP_INVALID_ARGUMENT, "blocks.%s: must be at least %" PRId64 ", got %" PRId64, name,
              least, value);
}

/// Room for what the longest sequence may be given.
tsp_status_t check_room(const tsp_estimate_params_t& p) {
  const tsp_block_sets_t& s = p.blocks;
  const int64_t key_blocks = (int64_t{longest_k(p.batch)} + s.block - 1) / s.block;
  const int64_t query_blocks = (int64_t{longest_q(p.batch)} + s.block - 1) / s.block;
  const bool many = p.batch.num_seqs > 1;
  TSP_RETURN_IF_ERROR(check_stride("row_stride", s.row_stride, key_blocks));
  TSP_RETURN_IF_ERROR(check_stride("set_stride", s.set_stride, query_blocks * s.row_stride));
  TSP_RETURN_IF_ERROR(check_stride("count_set_stride", s.count_set_stride, query_blocks));
  if (many) {
    TSP_RETURN_IF_ERROR(check_stride("seq_stride", s.seq_stride, s.num_sets * s.set_stride));
    TSP_RETURN_IF_ERROR(
        check_stride("count_seq_stride", s.count_seq_stride, s.num_sets * s.count_set_stride));
  }
  if (s.columns == nullptr || p.pattern.kind != TSP_PATTERN_MINFERENCE) return TSP_OK;
  const int64_t columns = std::min(std::max(p.pattern.vertical, 30), longest_k(p.batch));
  TSP_RETURN_IF_ERROR(check_stride("column_set_stride", s.column_set_stride, columns));
  return many ? check_stride("column_seq_stride", s.column_seq_stride,
                             s.num_sets * s.column_set_stride)
              : TSP_OK;
}

tsp_status_t check_output(const tsp_estimate_params_t& p, bool data) {
  const tsp_block_sets_t& s = p.blocks;
  const int32_t sets = num_sets_for(p.pattern.share, p.q.heads, p.k.heads);
  if (s.num_sets != sets) {
    return fail(TSP_INVALID_ARGUMENT, "blocks.num_sets: must be %d for pattern.share, got %d", sets,
                s.num_sets);
  }
  if (s.block != p.pattern.block) {
    return fail(TSP_INVALID_ARGUMENT, "blocks.block: must be pattern.block (%d), got %d",
                p.pattern.block, s.block);
  }
  if (p.selected.indices != nullptr && s.num_sets % p.selected.num_sets != 0) {
    return fail(TSP_INVALID_ARGUMENT,
                "blocks.num_sets: must be a multiple of selected.num_sets (%d), got %d",
                p.selected.num_sets, s.num_sets);
  }
  TSP_RETURN_IF_ERROR(check_room(p));
  if (!data) return TSP_OK;
  const bool lines = p.pattern.kind == TSP_PATTERN_MINFERENCE;
  const char* const missing = s.blocks == nullptr                                ? "blocks"
                              : s.counts == nullptr                              ? "counts"
                              : lines && s.columns == nullptr                    ? "columns"
                              : s.columns != nullptr && s.num_columns == nullptr ? "num_columns"
                                                                                 : nullptr;
  if (missing == nullptr) return TSP_OK;
  return fail(TSP_INVALID_ARGUMENT, "blocks.%s: must not be null", missing);
}

/// A list as a view of [rows, sets] of `width` entries.
Region region(const char* name, int32_t* data, int64_t width, int64_t set_stride,
              int64_t seq_stride, const tsp_estimate_params_t& p) {
  tsp_tensor_t view{};
  view.data = data;
  view.dtype = TSP_F32;
  view.tokens = p.batch.num_seqs;
  view.heads = p.blocks.num_sets;
  view.dim = width;
  view.token_stride = p.batch.num_seqs > 1 ? seq_stride : view.heads * set_stride;
  view.head_stride = set_stride;
  view.dim_stride = 1;
  return {name, view};
}

tsp_status_t check_memory(const tsp_estimate_params_t& p) {
  const tsp_block_sets_t& s = p.blocks;
  const int64_t query_blocks = (int64_t{longest_q(p.batch)} + s.block - 1) / s.block;
  if (query_blocks == 0) return TSP_OK;
  const bool lines = p.pattern.kind == TSP_PATTERN_MINFERENCE;
  return check_apart(
      {region("blocks.blocks", s.blocks, query_blocks * s.row_stride, s.set_stride, s.seq_stride,
              p),
       region("blocks.counts", s.counts, query_blocks, s.count_set_stride, s.count_seq_stride, p),
       region("blocks.columns", lines ? s.columns : nullptr, s.column_set_stride,
              s.column_set_stride, s.column_seq_stride, p),
       region("blocks.num_columns", s.columns == nullptr ? nullptr : s.num_columns, 1, 1,
              s.num_sets, p)},
      {{"q", p.q},
       {"k", p.k},
       lists_region("selected.indices", p.selected, p.batch),
       counts_region("selected.kept", p.selected, p.batch)});
}

tsp_status_t normalise(const tsp_context_t* ctx, const tsp_estimate_params_t* in, bool data,
                       tsp_estimate_params_t& p, SingleBatch& single) {
  TSP_RETURN_IF_ERROR(check_context(ctx, &OpTable::estimate, "estimate"));
  TSP_RETURN_IF_ERROR(read_params(in, &p));
  TSP_RETURN_IF_ERROR(check_reserved("reserved", p.reserved));
  TSP_RETURN_IF_ERROR(check_tensor({.name = "q", .data = data}, p.q));
  TSP_RETURN_IF_ERROR(check_tensor({.name = "k", .paged = true, .data = data}, p.k));
  TSP_RETURN_IF_ERROR(check_heads(p.q, "k", p.k));
  TSP_RETURN_IF_ERROR(check_scale(&p.scale, p.q.dim));
  TSP_RETURN_IF_ERROR(check_precision(p.precision));
  TSP_RETURN_IF_ERROR(
      check_range("pattern.share", p.pattern.share, TSP_SHARE_HEAD, TSP_SHARE_LAYER));
  TSP_RETURN_IF_ERROR(
      check_pattern(p.pattern, num_sets_for(p.pattern.share, p.q.heads, p.k.heads)));
  const int64_t k_rows = p.k.block_table != nullptr ? -1 : p.k.tokens;
  TSP_RETURN_IF_ERROR(check_batch(*ctx, p.batch, single, p.q.tokens, k_rows));
  TSP_RETURN_IF_ERROR(check_block_table(*ctx, "k", p.k, p.batch));
  if (p.selected.indices != nullptr) {
    if (data && p.selected.kept == nullptr) {
      return fail(TSP_INVALID_ARGUMENT, "selected.kept: must not be null with indices");
    }
    TSP_RETURN_IF_ERROR(
        check_sets(*ctx, "selected", p.selected, p.batch, p.q.heads, p.k.heads, data));
  }
  TSP_RETURN_IF_ERROR(check_output(p, data));
  if (data) TSP_RETURN_IF_ERROR(check_memory(p));
  return ctx->ops->check_estimate == nullptr ? TSP_OK : ctx->ops->check_estimate(*ctx, p);
}

size_t workspace_bytes(const tsp_context_t& ctx, const tsp_estimate_params_t& p) {
  return ctx.ops->estimate_workspace == nullptr ? 0 : ctx.ops->estimate_workspace(ctx, p);
}

}  // namespace
}  // namespace tsp

extern "C" {

void tsp_estimate_params_init(tsp_estimate_params_t* params, uint32_t struct_size) {
  tsp::init_params(params, struct_size, tsp_estimate_params_t{});
}

tsp_status_t tsp_estimate_workspace(tsp_context_t* ctx, const tsp_estimate_params_t* params,
                                    size_t* bytes) {
  tsp_estimate_params_t p;
  tsp::SingleBatch single;
  TSP_RETURN_IF_ERROR(tsp::normalise(ctx, params, false, p, single));
  *bytes = tsp::workspace_bytes(*ctx, p);
  return TSP_OK;
}

tsp_status_t tsp_estimate(tsp_context_t* ctx, const tsp_estimate_params_t* params) {
  tsp_estimate_params_t p;
  tsp::SingleBatch single;
  TSP_RETURN_IF_ERROR(tsp::normalise(ctx, params, true, p, single));
  TSP_RETURN_IF_ERROR(
      tsp::check_workspace(p.workspace, p.workspace_bytes, tsp::workspace_bytes(*ctx, p)));
  return ctx->ops->estimate(*ctx, p);
}
}
