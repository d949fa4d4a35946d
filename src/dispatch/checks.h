// SPDX-License-Identifier: MIT
// The rules that several ops share. Each check names the argument, the rule and the value.
#pragma once

#include <algorithm>
#include <cstring>

#include "core/context.h"
#include "core/error.h"
#include "core/layout.h"
#include "dispatch/params_abi.h"
#include "tokensparse/tokensparse.h"

namespace tsp {

/// Copies a params struct of whatever size the caller was compiled with into ours. Fields that an
/// older caller lacks are zero. A newer caller's extra fields must be zero: this library would not
/// do what they ask.
template <typename Params>
[[nodiscard]] tsp_status_t read_params(const Params* in, Params* out) {
  constexpr ParamsAbi abi = params_abi<Params>();
  if (in == nullptr) return fail(TSP_INVALID_ARGUMENT, "params: must not be null");
  uint32_t size;
  std::memcpy(&size, in, sizeof size);
  if (size < abi.smallest || size > 65536 || size % alignof(Params) != 0) {
    return fail(TSP_INVALID_ARGUMENT,
                "params.struct_size: must be sizeof(%s_t) (%zu, at least %zu), got %u", abi.name,
                sizeof(Params), abi.smallest, size);
  }
  const auto* const bytes = reinterpret_cast<const unsigned char*>(in);
  for (size_t i = sizeof(Params); i < size; ++i) {
    if (bytes[i] != 0) {
      return fail(TSP_UNSUPPORTED,
                  "params: byte %zu of %s_t is set, but this library (%s) knows only %zu bytes", i,
                  abi.name, tsp_version(), sizeof(Params));
    }
  }
  *out = Params{};
  std::memcpy(static_cast<void*>(out), in, std::min<size_t>(size, sizeof(Params)));
  out->struct_size = sizeof(Params);
  return TSP_OK;
}

/// Fills the caller's struct, of whatever size, with `defaults` and zeros.
template <typename Params>
void init_params(Params* params, uint32_t struct_size, Params defaults) {
  defaults.struct_size = struct_size;
  std::memset(static_cast<void*>(params), 0, struct_size);
  std::memcpy(static_cast<void*>(params), &defaults, std::min<size_t>(struct_size, sizeof(Params)));
}

/// A null context gives a failed status, with the sentence recorded.
[[nodiscard]] tsp_status_t check_context(const tsp_context_t* ctx);
[[nodiscard]] tsp_status_t refuse_op(const tsp_context_t& ctx, const char* name);
/// The context, and that its backend has this op: a backend leaves out what it cannot do.
template <typename Op>
[[nodiscard]] tsp_status_t check_context(const tsp_context_t* ctx, Op OpTable::*op,
                                         const char* name) {
  TSP_RETURN_IF_ERROR(check_context(ctx));
  return ctx->ops->*op != nullptr ? TSP_OK : refuse_op(*ctx, name);
}

struct TensorRule {
  const char* name;
  bool any_dtype = true;  // f32, f16, bf16; else f32 only
  bool paged = false;     // may be paged
  bool data = true;       // data must be given
  int64_t dim = 0;        // 0: any
};
[[nodiscard]] tsp_status_t check_tensor(const TensorRule& rule, const tsp_tensor_t& view);

/// Query and key views of one call: head counts divide, dims agree.
[[nodiscard]] tsp_status_t check_heads(const tsp_tensor_t& q, const char* kv_name,
                                       const tsp_tensor_t& kv);

/// Offsets of the only sequence when the caller gave no batch.
struct SingleBatch {
  int32_t q[2];
  int32_t k[2];
};
/// Validates a batch and normalises it to num_seqs >= 1. `q_rows` and `k_rows` are what the views
/// hold (k_rows < 0: paged, or no view to compare with).
[[nodiscard]] tsp_status_t check_batch(const tsp_context_t& ctx, tsp_batch_t& batch,
                                       SingleBatch& single, int64_t q_rows, int64_t k_rows);
/// The table of a paged view has room for every block of its sequences and, where it lies in host
/// memory, no hole there.
[[nodiscard]] tsp_status_t check_block_table(const tsp_context_t& ctx, const char* name,
                                             const tsp_tensor_t& view, const tsp_batch_t& batch);

/// Shape of the index sets; with `content` also that the lists ascend within each sequence (host).
[[nodiscard]] tsp_status_t check_sets(const tsp_context_t& ctx, const char* name,
                                      const tsp_index_sets_t& sets, const tsp_batch_t& batch,
                                      int64_t num_q_heads, int64_t num_kv_heads, bool content);

/// The tensors of attend and prefill, and their batch.
struct QkvOut {
  const tsp_tensor_t& q;
  const tsp_tensor_t& k;
  const tsp_tensor_t& v;
  const tsp_tensor_t& out;
  const tsp_tensor_t& lse;
};
[[nodiscard]] tsp_status_t check_qkv_out(const tsp_context_t& ctx, const QkvOut& t, bool data,
                                         tsp_batch_t& batch, SingleBatch& single);
[[nodiscard]] tsp_status_t check_same_kv(const tsp_tensor_t& k, const tsp_tensor_t& v);
[[nodiscard]] tsp_status_t check_precision(int32_t precision);
[[nodiscard]] tsp_status_t check_dropped(int32_t dropped, int32_t band, int32_t sink);

[[nodiscard]] tsp_status_t check_workspace(const void* workspace, size_t given, size_t needed);

[[nodiscard]] tsp_status_t check_range(const char* name, int64_t value, int64_t low, int64_t high);
/// What a later version may give a meaning.
[[nodiscard]] tsp_status_t check_reserved(const char* name, int64_t value);
[[nodiscard]] tsp_status_t check_pool(int32_t pool);
[[nodiscard]] tsp_status_t check_scale(float* scale, int64_t dim);
[[nodiscard]] tsp_status_t check_shares(float coverage, float keep);

/// f32 [rows, Hq, 1] such as scores and lse.
[[nodiscard]] tsp_status_t check_per_row(const char* name, const tsp_tensor_t& view, int64_t rows,
                                         int64_t heads, bool data);

}  // namespace tsp
