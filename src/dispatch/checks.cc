// SPDX-License-Identifier: MIT
#include "dispatch/checks.h"

#include <cinttypes>
#include <cmath>
#include <cstdint>

#include "core/dtype.h"

namespace tsp {
namespace {

constexpr int64_t kMaxTokens = int64_t{1} << 30;  // token counts and positions fit int32
constexpr int64_t kMaxHeads = 1 << 14;
constexpr int64_t kMaxDim = 1 << 14;
constexpr int64_t kMaxStride = int64_t{1} << 44;  // offsets of any view fit int64

}  // namespace

tsp_status_t check_context(const tsp_context_t* ctx) {
  if (ctx == nullptr) return fail(TSP_INVALID_ARGUMENT, "ctx: must not be null");
  return TSP_OK;
}

tsp_status_t refuse_op(const tsp_context_t& ctx, const char* name) {
  return fail(TSP_UNSUPPORTED, "%s: backend %s does not have this operation", name,
              ctx.ops->backend);
}

tsp_status_t check_range(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) {
    return fail(TSP_INVALID_ARGUMENT,
                "%s: must be between %" PRId64 " and %" PRId64 ", got %" PRId64, name, low, high,
                value);
  }
  return TSP_OK;
}

tsp_status_t check_reserved(const char* name, int64_t value) {
  if (value == 0) return TSP_OK;
  return fail(TSP_INVALID_ARGUMENT, "%s: must be 0, got %" PRId64, name, value);
}

tsp_status_t check_pool(int32_t pool) {
  if (pool < 1 || pool % 2 == 0 || pool > 1023) {
    return fail(TSP_INVALID_ARGUMENT, "pool: must be odd and between 1 and 1023, got %d", pool);
  }
  return TSP_OK;
}

tsp_status_t check_scale(float* scale, int64_t dim) {
  if (!std::isfinite(*scale) || *scale < 0) {
    return fail(TSP_INVALID_ARGUMENT, "scale: must be finite and >= 0 (0 = 1/sqrt(D)), got %g",
                static_cast<double>(*scale));
  }
  if (*scale == 0) *scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)));
  return TSP_OK;
}

tsp_status_t check_shares(float coverage, float keep) {
  if (!(coverage >= 0 && coverage < 1)) {
    return fail(TSP_INVALID_ARGUMENT, "coverage: must be in [0, 1), got %g",
                static_cast<double>(coverage));
  }
  if (!(keep >= 0 && keep <= 1)) {
    return fail(TSP_INVALID_ARGUMENT, "keep: must be in [0, 1] (0 = use coverage), got %g",
                static_cast<double>(keep));
  }
  return TSP_OK;
}

tsp_status_t check_tensor(const TensorRule& rule, const tsp_tensor_t& view) {
  const auto bad = [&](const char* field, const char* what, int64_t value) {
    return fail(TSP_INVALID_ARGUMENT, "%s.%s: %s, got %" PRId64, rule.name, field, what, value);
  };
  if (view.dtype < TSP_F32 || view.dtype > TSP_BF16) {
    return bad("dtype", "must be TSP_F32, TSP_F16 or TSP_BF16", view.dtype);
  }
  if (!rule.any_dtype && view.dtype != TSP_F32) {
    return fail(TSP_INVALID_ARGUMENT, "%s.dtype: must be f32, got %s", rule.name,
                dtype_name(view.dtype));
  }
  if (view.heads < 1 || view.heads > kMaxHeads) {
    return bad("heads", "must be between 1 and 16384", view.heads);
  }
  if (view.dim < 1 || view.dim > kMaxDim) {
    return bad("dim", "must be between 1 and 16384", view.dim);
  }
  if (rule.dim != 0 && view.dim != rule.dim) {
    return fail(TSP_INVALID_ARGUMENT, "%s.dim: must be %" PRId64 ", got %" PRId64, rule.name,
                rule.dim, view.dim);
  }
  const int64_t strides[] = {view.token_stride, view.head_stride, view.dim_stride};
  const char* const names[] = {"token_stride", "head_stride", "dim_stride"};
  const int64_t counts[] = {view.tokens, view.heads, view.dim};
  for (int i = 0; i < 3; ++i) {
    if (strides[i] < 0 || strides[i] > kMaxStride) {
      return bad(names[i], "must be between 0 and 2^44 elements", strides[i]);
    }
    if (strides[i] == 0 && counts[i] > 1 && view.tokens > 0) {
      return bad(names[i], "must not be 0 along an axis longer than 1", strides[i]);
    }
  }
  if (view.block_table != nullptr) {
    if (!rule.paged) {
      return fail(TSP_INVALID_ARGUMENT, "%s.block_table: only k and v may be paged", rule.name);
    }
    if (view.block_size < 1 || view.block_size > kMaxTokens) {
      return bad("block_size", "must be between 1 and 2^30 for a paged view", view.block_size);
    }
    if (view.block_stride < 0 || view.block_stride > kMaxStride) {
      return bad("block_stride", "must be between 0 and 2^44 elements", view.block_stride);
    }
    if (view.table_stride < 0 || view.table_stride > kMaxTokens) {
      return bad("table_stride", "must be between 0 and 2^30", view.table_stride);
    }
  } else if (view.tokens < 0 || view.tokens > kMaxTokens) {
    return bad("tokens", "must be between 0 and 2^30", view.tokens);
  }
  if (rule.data && (view.tokens > 0 || view.block_table != nullptr)) {
    if (view.data == nullptr) {
      return fail(TSP_INVALID_ARGUMENT, "%s.data: must not be null", rule.name);
    }
    const auto address = reinterpret_cast<uintptr_t>(view.data);
    if (address % static_cast<uintptr_t>(dtype_bytes(view.dtype)) != 0) {
      return fail(TSP_INVALID_ARGUMENT, "%s.data: must be aligned to its %s elements, got %p",
                  rule.name, dtype_name(view.dtype), view.data);
    }
  }
  return TSP_OK;
}

tsp_status_t check_heads(const tsp_tensor_t& q, const char* kv_name, const tsp_tensor_t& kv) {
  if (q.heads % kv.heads != 0) {
    return fail(TSP_INVALID_ARGUMENT,
                "%s.heads: must divide the query heads (%" PRId64 "), got %" PRId64, kv_name,
                q.heads, kv.heads);
  }
  if (q.dim != kv.dim) {
    return fail(TSP_INVALID_ARGUMENT,
                "%s.dim: must equal the head dim of q (%" PRId64 "), got %" PRId64, kv_name, q.dim,
                kv.dim);
  }
  return TSP_OK;
}

tsp_status_t check_batch(const tsp_context_t& ctx, tsp_batch_t& batch, SingleBatch& single,
                         int64_t q_rows, int64_t k_rows) {
  if (batch.num_seqs < 0 || batch.num_seqs > (1 << 20)) {
    return fail(TSP_INVALID_ARGUMENT, "batch.num_seqs: must be between 0 and 2^20, got %d",
                batch.num_seqs);
  }
  TSP_RETURN_IF_ERROR(check_reserved("batch.reserved", batch.reserved));
  if (batch.num_seqs == 0) {
    if (k_rows < 0) {
      return fail(TSP_INVALID_ARGUMENT,
                  "batch.num_seqs: a paged k needs its lengths in batch.k_offsets, got 0");
    }
    single = {{0, static_cast<int32_t>(q_rows)}, {0, static_cast<int32_t>(k_rows)}};
    batch = {single.q, single.k, 1, 0};
  } else if (batch.q_offsets == nullptr || batch.k_offsets == nullptr) {
    return fail(TSP_INVALID_ARGUMENT, "batch.%s_offsets: must not be null with num_seqs = %d",
                batch.q_offsets == nullptr ? "q" : "k", batch.num_seqs);
  }
  if (batch.q_offsets[0] != 0 || batch.k_offsets[0] != 0) {
    return fail(TSP_INVALID_ARGUMENT, "batch.%s_offsets[0]: must be 0, got %d",
                batch.q_offsets[0] != 0 ? "q" : "k",
                batch.q_offsets[0] != 0 ? batch.q_offsets[0] : batch.k_offsets[0]);
  }
  for (int32_t b = 0; b < batch.num_seqs; ++b) {
    const int64_t q_len = int64_t{batch.q_offsets[b + 1]} - batch.q_offsets[b];
    const int64_t k_len = int64_t{batch.k_offsets[b + 1]} - batch.k_offsets[b];
    if (q_len < 0) {
      return fail(TSP_INVALID_ARGUMENT,
                  "batch.q_offsets: must ascend, got %" PRId64 " rows of sequence %d", q_len, b);
    }
    if (q_len == 0 && !on_host(ctx)) {
      return fail(TSP_UNSUPPORTED, "sequence %d: must have at least one query on %s, got 0", b,
                  ctx.ops->backend);
    }
    if (q_len > k_len) {
      return fail(TSP_INVALID_ARGUMENT,
                  "sequence %d: must not have more queries (Tq = %" PRId64
                  ") than keys (Tk = %" PRId64 ")",
                  b, q_len, k_len);
    }
  }
  const int64_t q_total = batch.q_offsets[batch.num_seqs];
  const int64_t k_total = batch.k_offsets[batch.num_seqs];
  if (q_rows >= 0 && q_total != q_rows) {
    return fail(TSP_INVALID_ARGUMENT,
                "batch.q_offsets: must end at the rows of q (%" PRId64 "), got %" PRId64, q_rows,
                q_total);
  }
  if (k_rows >= 0 && k_total != k_rows) {
    return fail(TSP_INVALID_ARGUMENT,
                "batch.k_offsets: must end at the rows of k (%" PRId64 "), got %" PRId64, k_rows,
                k_total);
  }
  return TSP_OK;
}

tsp_status_t check_block_table(const tsp_context_t& ctx, const char* name, const tsp_tensor_t& view,
                               const tsp_batch_t& batch) {
  if (view.block_table == nullptr) return TSP_OK;
  for (int32_t b = 0; b < batch.num_seqs; ++b) {
    const Seq seq = seq_at(batch, b);
    const int64_t blocks = (int64_t{seq.k_len} + view.block_size - 1) / view.block_size;
    if (blocks > view.table_stride) {
      return fail(TSP_INVALID_ARGUMENT,
                  "%s.table_stride: sequence %d needs %" PRId64 " blocks, got %" PRId64, name, b,
                  blocks, view.table_stride);
    }
    if (view.data == nullptr || !on_host(ctx)) continue;
    for (int64_t block = 0; block < blocks; ++block) {
      const int32_t physical = view.block_table[b * view.table_stride + block];
      if (physical < 0) {
        return fail(TSP_INVALID_ARGUMENT,
                    "%s.block_table: must name a block for every token; sequence %d, block %" PRId64
                    " is %d",
                    name, b, block, physical);
      }
    }
  }
  return TSP_OK;
}

tsp_status_t check_sets(const tsp_context_t& ctx, const char* name, const tsp_index_sets_t& sets,
                        const tsp_batch_t& batch, int64_t num_q_heads, int64_t num_kv_heads,
                        bool content) {
  if (sets.reserved != 0) {
    return fail(TSP_INVALID_ARGUMENT, "%s.reserved: must be 0, got %d", name, sets.reserved);
  }
  if (sets.num_sets != num_q_heads && sets.num_sets != num_kv_heads && sets.num_sets != 1) {
    return fail(TSP_INVALID_ARGUMENT,
                "%s.num_sets: must be Hq (%" PRId64 "), Hkv (%" PRId64 ") or 1, got %d", name,
                num_q_heads, num_kv_heads, sets.num_sets);
  }
  if (sets.set_stride < longest_k(batch) || sets.set_stride > kMaxTokens) {
    return fail(TSP_INVALID_ARGUMENT,
                "%s.set_stride: must be at least the longest Tk (%d), got %" PRId64, name,
                longest_k(batch), sets.set_stride);
  }
  if (batch.num_seqs > 1 &&
      (sets.seq_stride < sets.num_sets * sets.set_stride || sets.seq_stride > kMaxStride)) {
    return fail(TSP_INVALID_ARGUMENT,
                "%s.seq_stride: must be at least num_sets * set_stride (%" PRId64 "), got %" PRId64,
                name, sets.num_sets * sets.set_stride, sets.seq_stride);
  }
  if (!content || !on_host(ctx)) return TSP_OK;
  for (int32_t b = 0; b < batch.num_seqs; ++b) {
    const Seq seq = seq_at(batch, b);
    const int32_t kept = sets.kept[b];
    const int32_t least = std::min(1, seq.k_len);
    if (kept < least || kept > seq.k_len) {
      return fail(TSP_INVALID_ARGUMENT, "%s.kept[%d]: must be between %d and Tk (%d), got %d", name,
                  b, least, seq.k_len, kept);
    }
    for (int32_t set = 0; set < sets.num_sets; ++set) {
      const int32_t* const indices = set_indices(sets, b, set);
      int32_t previous = -1;
      for (int32_t i = 0; i < kept; ++i) {
        if (indices[i] <= previous || indices[i] >= seq.k_len) {
          return fail(TSP_INVALID_ARGUMENT,
                      "%s.indices: must ascend within 0 .. Tk - 1 (%d); sequence %d, set %d, "
                      "entry %d is %d after %d",
                      name, seq.k_len - 1, b, set, i, indices[i], previous);
        }
        previous = indices[i];
      }
    }
  }
  return TSP_OK;
}

tsp_status_t check_same_kv(const tsp_tensor_t& k, const tsp_tensor_t& v) {
  if (k.dtype != v.dtype) {
    return fail(TSP_INVALID_ARGUMENT, "v.dtype: must be %s as k, got %s", dtype_name(k.dtype),
                dtype_name(v.dtype));
  }
  if (k.heads != v.heads) {
    return fail(TSP_INVALID_ARGUMENT, "v.heads: must be %" PRId64 " as k, got %" PRId64, k.heads,
                v.heads);
  }
  if ((k.block_table == nullptr) != (v.block_table == nullptr)) {
    return fail(TSP_INVALID_ARGUMENT, "v.block_table: k and v must both be paged or neither");
  }
  if (k.block_table == nullptr && k.tokens != v.tokens) {
    return fail(TSP_INVALID_ARGUMENT, "v.tokens: must be %" PRId64 " as k, got %" PRId64, k.tokens,
                v.tokens);
  }
  return TSP_OK;
}

tsp_status_t check_qkv_out(const tsp_context_t& ctx, const QkvOut& t, bool data, tsp_batch_t& batch,
                           SingleBatch& single) {
  TSP_RETURN_IF_ERROR(check_tensor({.name = "q", .data = data}, t.q));
  TSP_RETURN_IF_ERROR(check_tensor({.name = "k", .paged = true, .data = data}, t.k));
  TSP_RETURN_IF_ERROR(check_tensor({.name = "v", .paged = true, .data = data}, t.v));
  TSP_RETURN_IF_ERROR(check_heads(t.q, "k", t.k));
  TSP_RETURN_IF_ERROR(check_heads(t.q, "v", t.v));
  TSP_RETURN_IF_ERROR(check_same_kv(t.k, t.v));
  TSP_RETURN_IF_ERROR(check_tensor({.name = "out", .data = data, .dim = t.q.dim}, t.out));
  if (t.out.heads != t.q.heads || t.out.tokens != t.q.tokens) {
    return fail(TSP_INVALID_ARGUMENT,
                "out: must be [%" PRId64 ", %" PRId64 ", D] as q, got [%" PRId64 ", %" PRId64
                ", D]",
                t.q.tokens, t.q.heads, t.out.tokens, t.out.heads);
  }
  if (t.lse.data != nullptr) {
    TSP_RETURN_IF_ERROR(check_per_row("lse", t.lse, t.q.tokens, t.q.heads, true));
  }
  const int64_t k_rows = t.k.block_table != nullptr ? -1 : t.k.tokens;
  TSP_RETURN_IF_ERROR(check_batch(ctx, batch, single, t.q.tokens, k_rows));
  TSP_RETURN_IF_ERROR(check_block_table(ctx, "k", t.k, batch));
  return check_block_table(ctx, "v", t.v, batch);
}

tsp_status_t check_precision(int32_t precision) {
  return check_range("precision", precision, TSP_PRECISION_F32, TSP_PRECISION_BF16);
}

tsp_status_t check_dropped(int32_t dropped, int32_t band, int32_t sink) {
  TSP_RETURN_IF_ERROR(check_range("dropped", dropped, TSP_DROPPED_ZERO, TSP_DROPPED_LOCAL));
  TSP_RETURN_IF_ERROR(check_range("band", band, 1, 1 << 30));
  return check_range("sink", sink, 0, 1 << 30);
}

tsp_status_t check_workspace(const void* workspace, size_t given, size_t needed) {
  if (needed == 0) return TSP_OK;
  if (workspace == nullptr || given < needed) {
    return fail(TSP_INVALID_ARGUMENT, "workspace: must hold %zu bytes, got %zu", needed,
                workspace == nullptr ? size_t{0} : given);
  }
  if (reinterpret_cast<uintptr_t>(workspace) % 64 != 0) {
    return fail(TSP_INVALID_ARGUMENT, "workspace: must be 64-byte aligned, got %p", workspace);
  }
  return TSP_OK;
}

tsp_status_t check_per_row(const char* name, const tsp_tensor_t& view, int64_t rows, int64_t heads,
                           bool data) {
  TSP_RETURN_IF_ERROR(
      check_tensor({.name = name, .any_dtype = false, .data = data, .dim = 1}, view));
  if (view.heads != heads) {
    return fail(TSP_INVALID_ARGUMENT,
                "%s.heads: must equal the query heads (%" PRId64 "), got %" PRId64, name, heads,
                view.heads);
  }
  if (view.tokens != rows) {
    return fail(TSP_INVALID_ARGUMENT, "%s.tokens: must be %" PRId64 ", got %" PRId64, name, rows,
                view.tokens);
  }
  return TSP_OK;
}

}  // namespace tsp
