// SPDX-License-Identifier: MIT
// The entries of the CUDA op table, and the pieces of score and select that prefill shares.
#pragma once

#include "core/prefill_parts.h"
#include "cuda/scratch.h"
#include "cuda/select/select.h"
#include "cuda/state.h"

namespace tsp::cuda {

tsp_status_t score(tsp_context_t& ctx, const tsp_score_params_t& p);
tsp_status_t select(tsp_context_t& ctx, const tsp_select_params_t& p);
tsp_status_t compress(tsp_context_t& ctx, const tsp_compress_params_t& p);
tsp_status_t attend(tsp_context_t& ctx, const tsp_attend_params_t& p);
tsp_status_t decompress(tsp_context_t& ctx, const tsp_decompress_params_t& p);
tsp_status_t estimate(tsp_context_t& ctx, const tsp_estimate_params_t& p);
tsp_status_t prefill(tsp_context_t& ctx, const tsp_prefill_params_t& p);

size_t score_workspace(const tsp_context_t& ctx, const tsp_score_params_t& p);
size_t select_workspace(const tsp_context_t& ctx, const tsp_select_params_t& p);
size_t attend_workspace(const tsp_context_t& ctx, const tsp_attend_params_t& p);
size_t estimate_workspace(const tsp_context_t& ctx, const tsp_estimate_params_t& p);
size_t prefill_workspace(const tsp_context_t& ctx, const tsp_prefill_params_t& p);
tsp_status_t check_attend(const tsp_context_t& ctx, const tsp_attend_params_t& p);
tsp_status_t check_estimate(const tsp_context_t& ctx, const tsp_estimate_params_t& p);
tsp_status_t check_prefill(const tsp_context_t& ctx, const tsp_prefill_params_t& p);

/// q, k, v, out, lse and sets of attend and prefill lie on the device.
[[nodiscard]] tsp_status_t check_attend_memory(const tsp_context_t& ctx,
                                               const tsp_attend_params_t& p);

/// score on one sequence, into `scores`.
size_t score_scratch_bytes(const State& state, const tsp_score_params_t& p, const Seq& seq);
[[nodiscard]] tsp_status_t run_score(const State& state, const tsp_score_params_t& p,
                                     const Seq& seq, const Values& scores, void* scratch,
                                     cudaStream_t stream);

/// select on one sequence.
struct SelectTask {
  Values scores;
  Sets out;
  int32_t num_heads;
  int32_t num_sets;
  int32_t window;
  int32_t min_tokens;
  float coverage;
  float keep;
};
[[nodiscard]] tsp_status_t run_select(const State& state, const SelectTask& task, const Seq& seq,
                                      void* scratch, cudaStream_t stream);

}  // namespace tsp::cuda
