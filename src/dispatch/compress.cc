// SPDX-License-Identifier: MIT
#include "tokensparse/compress.h"

#include <cinttypes>

#include "core/dtype.h"
#include "dispatch/checks.h"
#include "dispatch/overlap.h"

namespace tsp {
namespace {

/// An output of compress: dtype, heads and dim as given, the same rows C for each sequence, and
/// room for what is kept.
tsp_status_t check_out(const char* name, const tsp_tensor_t& out, const tsp_tensor_t& in,
                       int64_t heads, const tsp_batch_t& batch) {
  TSP_RETURN_IF_ERROR(check_tensor({.name = name, .dim = in.dim}, out));
  if (out.dtype != in.dtype) {
    return fail(TSP_INVALID_ARGUMENT, "%s.dtype: must be %s as its input, got %s", name,
                dtype_name(in.dtype), dtype_name(out.dtype));
  }
  if (out.heads != heads) {
    return fail(TSP_INVALID_ARGUMENT, "%s.heads: must be %" PRId64 ", got %" PRId64, name, heads,
                out.heads);
  }
  if (out.tokens % batch.num_seqs != 0) {
    return fail(TSP_INVALID_ARGUMENT,
                "%s.tokens: must be a multiple of the sequences (%d), got %" PRId64, name,
                batch.num_seqs, out.tokens);
  }
  return TSP_OK;
}

tsp_status_t normalise(const tsp_context_t* ctx, const tsp_compress_params_t* in,
                       tsp_compress_params_t& p, SingleBatch& single) {
  TSP_RETURN_IF_ERROR(check_context(ctx, &OpTable::compress, "compress"));
  TSP_RETURN_IF_ERROR(read_params(in, &p));
  TSP_RETURN_IF_ERROR(check_reserved("reserved", p.reserved));
  const bool with_q = p.q.data != nullptr;
  TSP_RETURN_IF_ERROR(check_tensor({.name = "q", .data = with_q}, p.q));
  TSP_RETURN_IF_ERROR(check_tensor({.name = "k", .paged = true}, p.k));
  TSP_RETURN_IF_ERROR(check_tensor({.name = "v", .paged = true, .dim = p.k.dim}, p.v));
  TSP_RETURN_IF_ERROR(check_heads(p.q, "k", p.k));
  TSP_RETURN_IF_ERROR(check_same_kv(p.k, p.v));
  const int64_t k_rows = p.k.block_table != nullptr ? -1 : p.k.tokens;
  TSP_RETURN_IF_ERROR(check_batch(*ctx, p.batch, single, p.q.tokens, k_rows));
  TSP_RETURN_IF_ERROR(check_block_table(*ctx, "k", p.k, p.batch));
  TSP_RETURN_IF_ERROR(check_block_table(*ctx, "v", p.v, p.batch));
  if (p.selected.indices == nullptr || p.selected.kept == nullptr) {
    return fail(TSP_INVALID_ARGUMENT, "selected.%s: must not be null",
                p.selected.indices == nullptr ? "indices" : "kept");
  }
  TSP_RETURN_IF_ERROR(
      check_sets(*ctx, "selected", p.selected, p.batch, p.q.heads, p.k.heads, true));
  const int64_t kv_heads = std::max<int64_t>(p.selected.num_sets, p.k.heads);
  if (with_q) TSP_RETURN_IF_ERROR(check_out("q_out", p.q_out, p.q, p.q.heads, p.batch));
  TSP_RETURN_IF_ERROR(check_out("k_out", p.k_out, p.k, kv_heads, p.batch));
  TSP_RETURN_IF_ERROR(check_out("v_out", p.v_out, p.v, kv_heads, p.batch));
  if (p.v_out.tokens != p.k_out.tokens || (with_q && p.q_out.tokens != p.k_out.tokens)) {
    return fail(TSP_INVALID_ARGUMENT, "q_out, k_out, v_out: must have the same number of rows");
  }
  const int64_t rows = p.k_out.tokens / p.batch.num_seqs;
  for (int32_t b = 0; on_host(*ctx) && b < p.batch.num_seqs; ++b) {
    if (p.selected.kept[b] > rows) {
      return fail(TSP_INVALID_ARGUMENT,
                  "k_out.tokens: sequence %d keeps %d tokens, got room for %" PRId64, b,
                  p.selected.kept[b], rows);
    }
  }
  tsp_tensor_t q_out = p.q_out;
  if (!with_q) q_out.data = nullptr;
  return check_apart({{"q_out", q_out}, {"k_out", p.k_out}, {"v_out", p.v_out}},
                     {{"q", p.q},
                      {"k", p.k},
                      {"v", p.v},
                      lists_region("selected.indices", p.selected, p.batch),
                      counts_region("selected.kept", p.selected, p.batch)});
}

}  // namespace
}  // namespace tsp

extern "C" {

void tsp_compress_params_init(tsp_compress_params_t* params, uint32_t struct_size) {
  tsp::init_params(params, struct_size, tsp_compress_params_t{});
}

tsp_status_t tsp_compress(tsp_context_t* ctx, const tsp_compress_params_t* params) {
  tsp_compress_params_t p;
  tsp::SingleBatch single;
  TSP_RETURN_IF_ERROR(tsp::normalise(ctx, params, p, single));
  return ctx->ops->compress(*ctx, p);
}
}
