// SPDX-License-Identifier: MIT
/// \file compress.h
/// The kept rows side by side, for an attention kernel that knows nothing of sets. tsp_attend()
/// with index sets does not need it.
#ifndef TOKENSPARSE_COMPRESS_H_
#define TOKENSPARSE_COMPRESS_H_

#include "tokensparse/context.h"

#ifdef __cplusplus
extern "C" {
#endif

/// With C = rows of an output per sequence (its tokens / number of sequences), for i < kept[b]:
///   k_out[b*C + i, o] = k[indices[set, i], kv head],  v_out likewise
///   q_out[b*C + i, h] = q[indices[set(h), i] - (Tk - Tq), h], or zeros where that position is
///                       older than the sequence's first query (only when Tq < Tk)
/// k_out and v_out have max(S, Hkv) heads: with share head one per query head, else one per KV
/// head. Indices ascend, so plain causal attention on the short sequence, row i over rows 0..i, is
/// exact. Rows from kept[b] on are not written. Dtypes: outputs as their inputs.
typedef struct tsp_compress_params {
  uint32_t struct_size;
  uint32_t reserved;          ///< 0
  tsp_tensor_t q;             ///< [Tq, Hq, D]; data null = skip q
  tsp_tensor_t k;             ///< [Tk, Hkv, D]
  tsp_tensor_t v;             ///< [Tk, Hkv, D]
  tsp_index_sets_t selected;  ///< in
  tsp_tensor_t q_out;         ///< out [num_seqs * C, Hq, D]
  tsp_tensor_t k_out;         ///< out [num_seqs * C, max(S, Hkv), D]
  tsp_tensor_t v_out;         ///< out [num_seqs * C, max(S, Hkv), D]
  tsp_batch_t batch;
} tsp_compress_params_t;

TSP_API void tsp_compress_params_init(tsp_compress_params_t* params, uint32_t struct_size);
TSP_API tsp_status_t tsp_compress(tsp_context_t* ctx, const tsp_compress_params_t* params);

#ifdef __cplusplus
}  // extern "C"
#endif
#endif  // TOKENSPARSE_COMPRESS_H_
