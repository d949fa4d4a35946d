// SPDX-License-Identifier: MIT
/// \file estimate.h
/// Which key blocks each query block has to read: the block patterns of published methods.
#ifndef TOKENSPARSE_ESTIMATE_H_
#define TOKENSPARSE_ESTIMATE_H_

#include "tokensparse/context.h"

#ifdef __cplusplus
extern "C" {
#endif

/// Fills in the parameters of a method as its authors publish them (the defaults in types.h), with
/// sink_blocks = 1 for xattention, sink_blocks = 2, local_blocks = 3, last_blocks = 2 for flash.
TSP_API void tsp_pattern_init(tsp_pattern_t* pattern, int32_t kind);

/// Per sequence and block set, on its N entries (blocks and entries as tsp_block_sets_t says), in
/// f32, with B = block and e(m) the entries of query block m:
///
/// xattention (arXiv 2503.16428), s = stride. Key group j holds entries j * s .., query group i the
///   entries e0 + i * s ..; what a last group lacks counts as zeros.
///   x[i, j] = scale / s * sum over t < s of q[e0 + i * s + s - 1 - t] . k[j * s + t]
///   mass[m, n] = mean over the groups i of query block m of softmax_j(x[i]) summed over block n;
///   the softmax runs over the groups that begin at or before the last entry of group i.
/// pooled (the core of SpargeAttn, arXiv 2502.18137):
///   mass[m, n] = softmax_n(scale * mean of q over block m . mean of k over block n)
///   Here and above n runs over the blocks up to the query block's last entry.
/// flash (the rule of FlashPrefill, arXiv 2603.06199):
///   mass[m, n] = sum over i of one softmax of scale * q[i] . mean of k over block n, over every
///   entry i of query block m with every block n that ends by it (n * B + B - 1 <= i); else 0
/// minference (arXiv 2407.02490, vertical-slash): with A the causal softmax rows of the last
///   w = min(64, query entries) queries,
///   column[t] = mean over rows of A[., t]; slash[d] = mean over rows e of A[e, e - d].
///   The max(vertical, 30) strongest columns, the first 30 always, are `columns`; of the
///   max(slash, 50) strongest slashes, the first 100 always before others, a query block reads the
///   blocks they cross.
/// flexprefill (arXiv 2502.20766): column and slash as above over the last min(B, query entries)
///   queries; true[n] = sum of column over block n; guess = softmax_n(scale * mean of those queries
///   . mean of k over block n). Everything is read when N <= max(2 * B, min_budget, in blocks).
///   With d = sqrt(Jensen-Shannon divergence(true, guess)) >= tau: the fewest columns whose mass
///   exceeds gamma, c in number, give c / B + 1 column blocks, at least min_budget / B: those with
///   the most mass, block 0 first; slashes likewise, where slash block o stands for the blocks o
///   before the query block's own. With d < tau: min_budget / B of either, and, of the (m, n) of
///   `pooled` in all query blocks together, the strongest while their mass stays <= gamma * rows.
///
/// Mass decides as in tsp_select(): m = floor(mass * 2^e), e = 61 - ceil(log2(number of masses)).
///   xattention, pooled: what is always in, then the strongest until their sum is at least
///   ceil(threshold * total). flash: all with m >= ceil(alpha * the largest m).
/// Always in: the blocks that hold the query block's own entries, local_blocks before them, the
/// first sink_blocks, and for the last last_blocks query blocks everything. Ties go to the lower
/// block, column or slash. A set that several heads share decides on the mean of their estimates,
/// heads ascending. Where an estimate is not finite (a NaN or infinity in q or k), the query block
/// reads every block; with minference and flexprefill all query blocks of the set do, in that
/// sequence. Equal estimates give equal lists on every backend; estimates themselves agree to the
/// rounding of their arithmetic.
typedef struct tsp_estimate_params {
  uint32_t struct_size;
  float scale;                ///< 0 = 1 / sqrt(D)
  int32_t precision;          ///< tsp_precision_t of the products; default TSP_PRECISION_F32
  int32_t reserved;           ///< 0
  tsp_pattern_t pattern;      ///< kind not none
  tsp_tensor_t q;             ///< [Tq, Hq, D] f32, f16 or bf16
  tsp_tensor_t k;             ///< [Tk, Hkv, D] f32, f16 or bf16
  tsp_index_sets_t selected;  ///< in; indices null = every token. num_sets divides that of blocks
  tsp_block_sets_t blocks;    ///< out; num_sets as pattern.share says, block as pattern.block. Room
                              ///< in row_stride for the key blocks of the longest sequence, in the
                              ///< other strides for its query blocks; columns may be null but for
                              ///< minference, column_set_stride at least min(max(vertical, 30), Tk)
  tsp_batch_t batch;
  void* workspace;  ///< tsp_estimate_workspace() bytes, 64-byte aligned
  size_t workspace_bytes;
} tsp_estimate_params_t;

TSP_API void tsp_estimate_params_init(tsp_estimate_params_t* params, uint32_t struct_size);
TSP_API tsp_status_t tsp_estimate_workspace(tsp_context_t* ctx, const tsp_estimate_params_t* params,
                                            size_t* bytes);
TSP_API tsp_status_t tsp_estimate(tsp_context_t* ctx, const tsp_estimate_params_t* params);

#ifdef __cplusplus
}  // extern "C"
#endif
#endif  // TOKENSPARSE_ESTIMATE_H_
