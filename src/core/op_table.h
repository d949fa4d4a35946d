// SPDX-License-Identifier: MIT
// What a backend offers. Dispatch validates the parameters, fills in every default (scale, a batch
// of at least one sequence) and checks the workspace before it calls an entry: below this line only
// asserts remain. Where kept[b] is all of a sequence, its lists are not read.
#pragma once

#include "core/layout.h"
#include "tokensparse/tokensparse.h"

namespace tsp {

struct OpTable {
  const char* backend;
  /// Null: this backend does not have the op; dispatch answers TSP_UNSUPPORTED.
  tsp_status_t (*score)(tsp_context_t&, const tsp_score_params_t&);
  tsp_status_t (*select)(tsp_context_t&, const tsp_select_params_t&);
  tsp_status_t (*compress)(tsp_context_t&, const tsp_compress_params_t&);
  tsp_status_t (*attend)(tsp_context_t&, const tsp_attend_params_t&);
  tsp_status_t (*decompress)(tsp_context_t&, const tsp_decompress_params_t&);
  tsp_status_t (*estimate)(tsp_context_t&, const tsp_estimate_params_t&);
  /// Null: dispatch composes it from score, select and attend (host backends).
  tsp_status_t (*prefill)(tsp_context_t&, const tsp_prefill_params_t&);

  /// Bytes of workspace; null: none needed.
  size_t (*score_workspace)(const tsp_context_t&, const tsp_score_params_t&);
  size_t (*select_workspace)(const tsp_context_t&, const tsp_select_params_t&);
  size_t (*attend_workspace)(const tsp_context_t&, const tsp_attend_params_t&);
  size_t (*estimate_workspace)(const tsp_context_t&, const tsp_estimate_params_t&);
  size_t (*prefill_workspace)(const tsp_context_t&, const tsp_prefill_params_t&);
  /// What the backend cannot serve (a head dim, a dtype), as a failed status; null: serves all.
  tsp_status_t (*check_score)(const tsp_context_t&, const tsp_score_params_t&);
  tsp_status_t (*check_attend)(const tsp_context_t&, const tsp_attend_params_t&);
  tsp_status_t (*check_estimate)(const tsp_context_t&, const tsp_estimate_params_t&);
  tsp_status_t (*check_prefill)(const tsp_context_t&, const tsp_prefill_params_t&);
  /// For TSP_WHEN_PAYS: whether leaving tokens out of a sequence is expected to be faster than
  /// exact attention; null: always. `kept` is how many it keeps, or a guess, or -1 for neither:
  /// then a look at a sample of it (dispatch/pilot.h) must cost next to nothing beside exact
  /// attention, too. `chosen`: choosing is behind us and costs nothing any more. Host backends.
  bool (*prefill_pays)(const tsp_context_t&, const tsp_prefill_params_t&, const Seq&, int32_t kept,
                       bool chosen);
  /// Likewise for attending by the blocks of a pattern on the `kept` tokens of a sequence. `listed`
  /// is the share of their pairs that the blocks hold, or -1 before they are estimated.
  bool (*pattern_pays)(const tsp_context_t&, const tsp_prefill_params_t&, const Seq&, int32_t kept,
                       double listed);
  /// What tsp_prefill_pays() says of a shape; null: it may.
  bool (*may_pay)(int32_t q_len, int32_t k_len, int64_t q_heads, int64_t head_dim);
};

/// The table for an instruction set, or null when the machine (or the build) lacks it.
const OpTable* ref_ops();
const OpTable* cpu_ops(const char* isa);
/// Fills the context for its device; fails with a reason when there is no usable GPU.
tsp_status_t cuda_open(tsp_context_t& ctx);

}  // namespace tsp
