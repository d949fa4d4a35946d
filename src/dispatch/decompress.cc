// SPDX-License-Identifier: MIT
#include "tokensparse/decompress.h"

#include <cinttypes>

#include "core/dtype.h"
#include "dispatch/checks.h"
#include "dispatch/overlap.h"

namespace tsp {
namespace {

tsp_status_t normalise(const tsp_context_t* ctx, const tsp_decompress_params_t* in,
                       tsp_decompress_params_t& p, SingleBatch& single) {
  TSP_RETURN_IF_ERROR(check_context(ctx, &OpTable::decompress, "decompress"));
  TSP_RETURN_IF_ERROR(read_params(in, &p));
  TSP_RETURN_IF_ERROR(check_tensor({.name = "out"}, p.out));
  TSP_RETURN_IF_ERROR(check_tensor({.name = "in", .dim = p.out.dim}, p.in));
  if (p.in.dtype != p.out.dtype) {
    return fail(TSP_INVALID_ARGUMENT, "in.dtype: must be %s as out, got %s",
                dtype_name(p.out.dtype), dtype_name(p.in.dtype));
  }
  if (p.in.heads != p.out.heads) {
    return fail(TSP_INVALID_ARGUMENT, "in.heads: must be %" PRId64 " as out, got %" PRId64,
                p.out.heads, p.in.heads);
  }
  const bool single_seq = p.batch.num_seqs == 0;
  if (single_seq) TSP_RETURN_IF_ERROR(check_range("k_len", p.k_len, 1, 1 << 30));
  TSP_RETURN_IF_ERROR(check_batch(*ctx, p.batch, single, p.out.tokens, single_seq ? p.k_len : -1));
  if (p.selected.indices == nullptr || p.selected.kept == nullptr) {
    return fail(TSP_INVALID_ARGUMENT, "selected.%s: must not be null",
                p.selected.indices == nullptr ? "indices" : "kept");
  }
  if (p.selected.num_sets < 1 || p.out.heads % p.selected.num_sets != 0) {
    return fail(TSP_INVALID_ARGUMENT,
                "selected.num_sets: must divide the query heads (%" PRId64 "), got %d", p.out.heads,
                p.selected.num_sets);
  }
  TSP_RETURN_IF_ERROR(
      check_sets(*ctx, "selected", p.selected, p.batch, p.out.heads, p.selected.num_sets, true));
  if (p.in.tokens % p.batch.num_seqs != 0) {
    return fail(TSP_INVALID_ARGUMENT,
                "in.tokens: must be a multiple of the sequences (%d), got %" PRId64,
                p.batch.num_seqs, p.in.tokens);
  }
  const int64_t rows = p.in.tokens / p.batch.num_seqs;
  for (int32_t b = 0; on_host(*ctx) && b < p.batch.num_seqs; ++b) {
    if (p.selected.kept[b] > rows) {
      return fail(TSP_INVALID_ARGUMENT,
                  "in.tokens: sequence %d keeps %d tokens, got %" PRId64 " rows", b,
                  p.selected.kept[b], rows);
    }
  }
  return check_apart({{"out", p.out}}, {{"in", p.in},
                                        lists_region("selected.indices", p.selected, p.batch),
                                        counts_region("selected.kept", p.selected, p.batch)});
}

}  // namespace
}  // namespace tsp

extern "C" {

void tsp_decompress_params_init(tsp_decompress_params_t* params, uint32_t struct_size) {
  tsp::init_params(params, struct_size, tsp_decompress_params_t{});
}

tsp_status_t tsp_decompress(tsp_context_t* ctx, const tsp_decompress_params_t* params) {
  tsp_decompress_params_t p;
  tsp::SingleBatch single;
  TSP_RETURN_IF_ERROR(tsp::normalise(ctx, params, p, single));
  return ctx->ops->decompress(*ctx, p);
}
}
