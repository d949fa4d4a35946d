// SPDX-License-Identifier: MIT
/// \file select.h
/// From scores to sets: how many tokens a sequence keeps, and which ones each set keeps.
#ifndef TOKENSPARSE_SELECT_H_
#define TOKENSPARSE_SELECT_H_

#include "tokensparse/context.h"

#ifdef __cplusplus
extern "C" {
#endif

/// One count per sequence, one list per set. With w = min(window, Tq), P = Tk - w and
///   g[t] = sum over heads of s[h, t], heads ascending, in f32
///   m[t] = floor(g[t] * 2^e), e = 61 - ceil(log2(Hq)) - ceil(log2(P)): mass in 64-bit fixed point
///   M    = sum of m[t];  limit = ceil(coverage * M) in double
///   n    = number of tokens, ascending by g, whose cumulative mass is below limit
/// the sequence keeps K = max(min_tokens, P - n - 1) prefix tokens, at most P, and the last w.
/// It keeps everything (kept = Tk) when n = 0, coverage = 0, Tk <= min_tokens + w, or a score is
/// not in [0, 2] (NaN included: such scores rank nothing). With `keep` > 0 the count is
/// max(min_tokens, ceil(keep * Tk) - w), at most P, instead. Set s ranks by the f32 sum of its
/// heads' scores, heads ascending; the largest K win, ties go to the lower position. Mass in fixed
/// point makes the result the same on every backend, bit for bit.
typedef struct tsp_select_params {
  uint32_t struct_size;
  int32_t window;        ///< as given to tsp_score(); default 128
  int32_t min_tokens;    ///< prefix tokens that are always kept, >= 0; default 1024
  int32_t share;         ///< tsp_share_t; default TSP_SHARE_HEAD
  float coverage;        ///< share of the prefix mass that may be dropped, [0, 1); default 0.005
  float keep;            ///< fixed share of the tokens to keep, (0, 1]; 0 = use coverage (default)
  int32_t num_kv_heads;  ///< Hkv
  int32_t q_len;         ///< Tq when batch.num_seqs = 0 (k_len too)
  int32_t k_len;         ///< Tk when batch.num_seqs = 0
  int32_t reserved;      ///< 0
  tsp_tensor_t scores;   ///< [P of all sequences together, Hq, 1] f32, as tsp_score() wrote them
  tsp_index_sets_t selected;  ///< out
  tsp_batch_t batch;
  void* workspace;  ///< tsp_select_workspace() bytes, 64-byte aligned
  size_t workspace_bytes;
} tsp_select_params_t;

TSP_API void tsp_select_params_init(tsp_select_params_t* params, uint32_t struct_size);
TSP_API tsp_status_t tsp_select_workspace(tsp_context_t* ctx, const tsp_select_params_t* params,
                                          size_t* bytes);
TSP_API tsp_status_t tsp_select(tsp_context_t* ctx, const tsp_select_params_t* params);

#ifdef __cplusplus
}  // extern "C"
#endif
#endif  // TOKENSPARSE_SELECT_H_
