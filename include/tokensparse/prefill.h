// SPDX-License-Identifier: MIT
/// \file prefill.h
/// Token sparse attention in one call: score, select and attend. What adapters use.
#ifndef TOKENSPARSE_PREFILL_H_
#define TOKENSPARSE_PREFILL_H_

#include "tokensparse/context.h"

#ifdef __cplusplus
extern "C" {
#endif

/// out = attend(q, k, v, select(score(q, k))). Dense, with kept = Tk, wherever select keeps all.
/// coverage = 0 and keep = 0 is exact attention: no score is computed and the result equals a dense
/// tsp_attend() bit for bit. A whole prompt, a chunk of one (Tq < Tk) and a turn on a cached prefix
/// are the same call. With `given`, out = attend(q, k, v, given): nothing is scored or selected,
/// and coverage, keep, window, pool, min_tokens and share are not used. With a `pattern`
/// attention runs by the key blocks that tsp_estimate() finds among the kept tokens, or among all
/// with coverage = 0 and keep = 0; with TSP_WHEN_PAYS by every block where choosing does not pay.
typedef struct tsp_prefill_params {
  uint32_t struct_size;
  float scale;         ///< 0 = 1 / sqrt(D)
  float coverage;      ///< share of the prefix mass that may be dropped, [0, 1); default 0.005
  float keep;          ///< fixed share of the tokens to keep, (0, 1]; 0 = use coverage (default)
  int32_t window;      ///< last queries that vote, >= 1; default 128
  int32_t pool;        ///< odd, >= 1; default 7
  int32_t min_tokens;  ///< prefix tokens that are always kept, >= 0; default 1024
  int32_t share;       ///< tsp_share_t; default TSP_SHARE_HEAD
  int32_t dropped;     ///< tsp_dropped_t; default TSP_DROPPED_ZERO
  int32_t band;        ///< last keys of TSP_DROPPED_LOCAL, >= 1; default 256
  int32_t precision;   ///< tsp_precision_t of score and attend; default TSP_PRECISION_F32
  int32_t sink;        ///< first keys of TSP_DROPPED_LOCAL, >= 0; default 0
  tsp_tensor_t q;      ///< [Tq, Hq, D] f32, f16 or bf16
  tsp_tensor_t k;      ///< [Tk, Hkv, D] f32, f16 or bf16
  tsp_tensor_t v;      ///< [Tk, Hkv, D] dtype of k
  tsp_tensor_t out;    ///< out [Tq, Hq, D] f32, f16 or bf16; every row is written
  tsp_tensor_t lse;    ///< out [Tq, Hq, 1] f32; data null = not wanted
  tsp_index_sets_t selected;  ///< out; indices and kept may each be null = not wanted. num_sets
                              ///< must be what `share` says (`given`: that of given) when indices
                              ///< are wanted
  tsp_batch_t batch;
  void* workspace;  ///< tsp_prefill_workspace() bytes, 64-byte aligned
  size_t workspace_bytes;
  tsp_index_sets_t given;   ///< in; indices null = choose; else these sets, as in tsp_attend()
  int32_t when;             ///< tsp_when_t; default TSP_WHEN_ALWAYS
  int32_t reserved2;        ///< 0
  tsp_block_sets_t blocks;  ///< in; blocks null = every key. Blocks of the entries of `given`, or
                            ///< of positions with coverage = 0 and keep = 0; `when` is ALWAYS
  tsp_pattern_t pattern;    ///< kind none = every block of the kept tokens; else blocks as
                            ///< tsp_estimate() chooses them, whose sets are a multiple of the
                            ///< kept tokens' sets; then `blocks` is not given. On CUDA block is 128
                            ///< and kind not minference
  int64_t* tally;  ///< inout, where q lives, null = not wanted: adds to [0] the kept tokens
                   ///< of the sequences, to [1] the query-key pairs that attention of all
                   ///< query heads computes; with blocks or a pattern on host backends alone
} tsp_prefill_params_t;

TSP_API void tsp_prefill_params_init(tsp_prefill_params_t* params, uint32_t struct_size);
TSP_API tsp_status_t tsp_prefill_workspace(tsp_context_t* ctx, const tsp_prefill_params_t* params,
                                           size_t* bytes);
TSP_API tsp_status_t tsp_prefill(tsp_context_t* ctx, const tsp_prefill_params_t* params);
/// Whether TSP_WHEN_PAYS may leave tokens out of a sequence of `rows` queries and `keys` keys, by
/// shape alone: pays is 0 where it attends exactly whatever would be chosen, else 1. Host backends
/// also look at what is chosen, and answer 1.
TSP_API tsp_status_t tsp_prefill_pays(tsp_context_t* ctx, int32_t rows, int32_t keys,
                                      int32_t q_heads, int32_t head_dim, int32_t* pays);

#ifdef __cplusplus
}  // extern "C"
#endif
#endif  // TOKENSPARSE_PREFILL_H_
