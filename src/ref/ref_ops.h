// SPDX-License-Identifier: MIT
// The reference: what each op means, in plain scalar code with double accumulation. It is the
// specification that every other backend is tested against; speed is not its business.
#pragma once

#include "core/context.h"
#include "core/dtype.h"
#include "core/layout.h"

namespace tsp::ref {

tsp_status_t score(tsp_context_t& ctx, const tsp_score_params_t& p);
size_t score_workspace(const tsp_context_t& ctx, const tsp_score_params_t& p);
tsp_status_t select(tsp_context_t& ctx, const tsp_select_params_t& p);
size_t select_workspace(const tsp_context_t& ctx, const tsp_select_params_t& p);
tsp_status_t compress(tsp_context_t& ctx, const tsp_compress_params_t& p);
tsp_status_t attend(tsp_context_t& ctx, const tsp_attend_params_t& p);
size_t attend_workspace(const tsp_context_t& ctx, const tsp_attend_params_t& p);
tsp_status_t decompress(tsp_context_t& ctx, const tsp_decompress_params_t& p);
tsp_status_t estimate(tsp_context_t& ctx, const tsp_estimate_params_t& p);
size_t estimate_workspace(const tsp_context_t& ctx, const tsp_estimate_params_t& p);

/// scale * q[row] . k[token] in double.
double logit(const tsp_tensor_t& q, const tsp_tensor_t& k, const Seq& seq, int32_t q_row,
             int32_t token, int32_t head, float scale);

/// Copies a row of `in` to a row of `out`, bits unchanged; a negative `from` writes zeros.
void copy_row(const tsp_tensor_t& in, int64_t from, const tsp_tensor_t& out, int64_t to);

}  // namespace tsp::ref
