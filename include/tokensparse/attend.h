// SPDX-License-Identifier: MIT
/// \file attend.h
/// Causal attention, dense or on the kept tokens of each set.
#ifndef TOKENSPARSE_ATTEND_H_
#define TOKENSPARSE_ATTEND_H_

#include "tokensparse/context.h"

#ifdef __cplusplus
extern "C" {
#endif

/// For query row r of head h at position i = Tk - Tq + r, with I the tokens of the head's set
/// (every token when `selected.indices` is null):
///   i in I:      out[r, h] = sum of softmax_j(scale * q[r, h] . k[j, g]) * v[j, g] over j in I,
///                j <= i, with g = h / (Hq / Hkv)
///   i not in I:  `dropped`: zeros, or the same sum over j < sink and j > i - band, j <= i, each
///                key once
///   lse[r, h] = natural log of the softmax's denominator; -inf for a row of zeros
/// With `blocks`, a row that is in I sums over those of its keys that its block set lists; a row
/// that is not sees what it sees without. Blocks that list everything give the result without
/// blocks, bit for bit; on CUDA with heads of 64 channels, where another kernel follows lists, to
/// the rounding of the output. Bottom-right causal: the queries are the last Tq of the Tk
/// positions. Gather and scatter are part of the kernel. Index sets that keep every token give the
/// dense result, bit for bit; on CUDA with cuDNN, which has another kernel for lengths that only
/// the device knows, to the rounding of the output. A NaN or infinity in q, k or v reaches the
/// output rows that read it, and no other.
typedef struct tsp_attend_params {
  uint32_t struct_size;
  float scale;                ///< 0 = 1 / sqrt(D)
  int32_t dropped;            ///< tsp_dropped_t; default TSP_DROPPED_ZERO
  int32_t band;               ///< last keys of TSP_DROPPED_LOCAL, >= 1; default 256
  int32_t precision;          ///< tsp_precision_t; default TSP_PRECISION_F32
  int32_t sink;               ///< first keys of TSP_DROPPED_LOCAL, >= 0; default 0
  tsp_tensor_t q;             ///< [Tq, Hq, D] f32, f16 or bf16
  tsp_tensor_t k;             ///< [Tk, Hkv, D] f32, f16 or bf16
  tsp_tensor_t v;             ///< [Tk, Hkv, D] dtype of k
  tsp_tensor_t out;           ///< out [Tq, Hq, D] f32, f16 or bf16; every row is written
  tsp_tensor_t lse;           ///< out [Tq, Hq, 1] f32; data null = not wanted
  tsp_index_sets_t selected;  ///< in; indices null = dense
  tsp_batch_t batch;
  void* workspace;  ///< tsp_attend_workspace() bytes, 64-byte aligned
  size_t workspace_bytes;
  tsp_block_sets_t blocks;  ///< in; blocks null = every key
} tsp_attend_params_t;

TSP_API void tsp_attend_params_init(tsp_attend_params_t* params, uint32_t struct_size);
TSP_API tsp_status_t tsp_attend_workspace(tsp_context_t* ctx, const tsp_attend_params_t* params,
                                          size_t* bytes);
TSP_API tsp_status_t tsp_attend(tsp_context_t* ctx, const tsp_attend_params_t* params);

#ifdef __cplusplus
}  // extern "C"
#endif
#endif  // TOKENSPARSE_ATTEND_H_
