// SPDX-License-Identifier: MIT
/// \file score.h
/// How much the last queries of a sequence look at each earlier token.
#ifndef TOKENSPARSE_SCORE_H_
#define TOKENSPARSE_SCORE_H_

#include "tokensparse/context.h"

#ifdef __cplusplus
extern "C" {
#endif

/// Per query head h and prefix token t (w = min(window, Tq), P = Tk - w; nothing when P <= 0):
///   a[h, t] = 1/w * sum over the last w queries i of softmax_j(scale * q[i, h] . k[j, h / G])[t]
///   s[h, t] = 1/pool * sum of a[h, u], |u - t| <= pool / 2, 0 <= u < P
/// The softmax runs over every key the query sees, the window's own included; G = Hq / Hkv, K is
/// never repeated. Pooling counts the padding zeros in its divisor, so the edges are attenuated.
/// A NaN or infinity in q or k makes the scores it reaches NaN.
/// Source: Token Sparse Attention, arXiv 2602.03216, section 3.
typedef struct tsp_score_params {
  uint32_t struct_size;
  int32_t window;       ///< queries that vote, >= 1; default 128
  int32_t pool;         ///< odd, >= 1; default 7
  float scale;          ///< 0 = 1 / sqrt(D)
  int32_t precision;    ///< tsp_precision_t, of the products q . k; default TSP_PRECISION_F32
  int32_t reserved;     ///< 0
  tsp_tensor_t q;       ///< [Tq, Hq, D] f32, f16 or bf16
  tsp_tensor_t k;       ///< [Tk, Hkv, D] f32, f16 or bf16
  tsp_tensor_t scores;  ///< out [P of all sequences together, Hq, 1] f32; sequence b starts at the
                        ///< sum of the P before it
  tsp_batch_t batch;
  void*
      workspace;  ///< tsp_score_workspace() bytes, 64-byte aligned, memory of the context's device
  size_t workspace_bytes;
} tsp_score_params_t;

TSP_API void tsp_score_params_init(tsp_score_params_t* params, uint32_t struct_size);
/// Bytes of workspace that tsp_score() needs for these shapes on this context (data may be null).
TSP_API tsp_status_t tsp_score_workspace(tsp_context_t* ctx, const tsp_score_params_t* params,
                                         size_t* bytes);
TSP_API tsp_status_t tsp_score(tsp_context_t* ctx, const tsp_score_params_t* params);

#ifdef __cplusplus
}  // extern "C"
#endif
#endif  // TOKENSPARSE_SCORE_H_
