// SPDX-License-Identifier: MIT
/// \file decompress.h
/// Attention output on kept rows back to full length: the inverse of compress.h.
#ifndef TOKENSPARSE_DECOMPRESS_H_
#define TOKENSPARSE_DECOMPRESS_H_

#include "tokensparse/context.h"

#ifdef __cplusplus
extern "C" {
#endif

/// out[indices[set(h), i] - (Tk - Tq), h] = in[b*C + i, h] for i < kept[b] (positions older than
/// the first query are skipped); every other row of out is zero. Dtypes of in and out are equal.
typedef struct tsp_decompress_params {
  uint32_t struct_size;
  int32_t k_len;              ///< Tk when batch.num_seqs = 0
  tsp_tensor_t in;            ///< [num_seqs * C, Hq, D], C as in compress.h
  tsp_index_sets_t selected;  ///< in
  tsp_tensor_t out;           ///< out [Tq, Hq, D]
  tsp_batch_t batch;
} tsp_decompress_params_t;

TSP_API void tsp_decompress_params_init(tsp_decompress_params_t* params, uint32_t struct_size);
TSP_API tsp_status_t tsp_decompress(tsp_context_t* ctx, const tsp_decompress_params_t* params);

#ifdef __cplusplus
}  // extern "C"
#endif
#endif  // TOKENSPARSE_DECOMPRESS_H_
