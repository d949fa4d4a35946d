// SPDX-License-Identifier: MIT
/// \file types.h
/// What every operation shares: status, dtypes, tensor views, batches, index sets.
/// Plain C11; the whole ABI of the library is built from these types. Frozen within an ABI version.
#ifndef TOKENSPARSE_TYPES_H_
#define TOKENSPARSE_TYPES_H_

#include <stddef.h>
#include <stdint.h>

#if defined(TSP_STATIC)
#define TSP_API
#elif defined(__GNUC__)
#define TSP_API __attribute__((visibility("default")))
#else
#define TSP_API
#endif

/// Raised when a struct below or the meaning of a call changes. Params structs grow at their end
/// without a new ABI version: `struct_size` tells the library what the caller knows. Fields that an
/// older caller lacks are zero; what a newer one sets and this library does not know is refused.
#define TSP_ABI_VERSION 1

#ifdef __cplusplus
extern "C" {
#endif

/// What a call returns. Every failure also leaves one sentence in tsp_last_error().
typedef enum tsp_status {
  TSP_OK = 0,
  TSP_INVALID_ARGUMENT =
      1,                  ///< the caller broke a rule; the message names argument, rule and value
  TSP_UNSUPPORTED = 2,    ///< a valid request that this backend or machine cannot serve
  TSP_OUT_OF_MEMORY = 3,  ///< an allocation failed (contexts only: operations never allocate)
  TSP_UNAVAILABLE = 4,    ///< the backend or device asked for is not there
  TSP_INTERNAL = 5,       ///< a bug or a failed device call
} tsp_status_t;

/// The message of the last call on this thread that did not return TSP_OK. Never null; valid until
/// the next failing call on the same thread.
TSP_API const char* tsp_last_error(void);

/// Version of the library, "major.minor.patch", and the ABI it was built with (TSP_ABI_VERSION).
TSP_API const char* tsp_version(void);
TSP_API uint32_t tsp_abi_version(void);

typedef enum tsp_dtype {
  TSP_F32 = 0,
  TSP_F16 = 1,   ///< IEEE binary16
  TSP_BF16 = 2,  ///< bfloat16
} tsp_dtype_t;

/// Who owns a set of kept tokens. With S sets, query head h uses set h / (Hq / S).
typedef enum tsp_share {
  TSP_SHARE_HEAD = 0,  ///< S = Hq, every query head ranks for itself (the paper)
  TSP_SHARE_KV_GROUP =
      1,                ///< S = Hkv, the query heads of one KV head share: their mean score ranks
  TSP_SHARE_LAYER = 2,  ///< S = 1, all heads share
} tsp_share_t;

/// What the output row of a query gets when its set left it out.
typedef enum tsp_dropped {
  TSP_DROPPED_ZERO = 0,   ///< zeros, log-sum-exp -inf (the paper)
  TSP_DROPPED_LOCAL = 1,  ///< causal attention over the first `sink` keys and the last `band` keys,
                          ///< itself included
} tsp_dropped_t;

/// When tokens are left out at all.
typedef enum tsp_when {
  TSP_WHEN_ALWAYS = 0,  ///< do what is asked, whatever it costs
  TSP_WHEN_PAYS = 1,    ///< attend exactly in sequences where that is expected to be as fast
} tsp_when_t;

/// Arithmetic of the matrix products. Accumulation, softmax and log-sum-exp are f32 in both.
typedef enum tsp_precision {
  TSP_PRECISION_F32 = 0,   ///< products of f32 values
  TSP_PRECISION_BF16 = 1,  ///< operands rounded to bf16: about 3e-3 relative RMS error
} tsp_precision_t;

/// A strided view of `[tokens, heads, dim]`. Never owns. What a call writes must not overlap itself
/// or what it reads; views that interleave, such as parts of one tensor, do not. Strides are in
/// elements, so token-major, head-major and transposed layouts need no copy. A paged view
/// (block_table not null) finds token t of sequence b in block p = block_table[b * table_stride + t
/// / block_size], row t % block_size:
///   data + p * block_stride + (t % block_size) * token_stride
///        + head * head_stride + d * dim_stride
typedef struct tsp_tensor {
  void* data;          ///< first element; null = tensor not given (only where an op says so)
  int32_t dtype;       ///< tsp_dtype_t
  int32_t block_size;  ///< tokens in a block; 0 when not paged
  int64_t tokens;      ///< rows in all sequences together; ignored for a paged view
  int64_t heads;
  int64_t dim;
  int64_t token_stride;        ///< elements from a token to the next (within a block when paged)
  int64_t head_stride;         ///< elements from a head to the next
  int64_t dim_stride;          ///< elements from a channel to the next; 1 is fast
  const int32_t* block_table;  ///< [num_seqs, table_stride] physical blocks, >= 0 where a token is
                               ///< (checked in host memory; on a GPU attend and prefill answer
                               ///< with NaN where one is negative, others take it on trust),
                               ///< anything behind; null = not paged
  int64_t table_stride;        ///< entries of block_table for one sequence
  int64_t block_stride;        ///< elements from a block to the next
} tsp_tensor_t;

/// A view of [tokens, heads, dim] that lies token after token, without gaps; the strides may be
/// changed after. `data` of inputs is not written.
static inline tsp_tensor_t tsp_tensor_view(const void* data, int32_t dtype, int64_t tokens,
                                           int64_t heads, int64_t dim) {
  tsp_tensor_t view;
  view.data = (void*)data;
  view.dtype = dtype;
  view.block_size = 0;
  view.tokens = tokens;
  view.heads = heads;
  view.dim = dim;
  view.token_stride = heads * dim;
  view.head_stride = dim;
  view.dim_stride = 1;
  view.block_table = 0;
  view.table_stride = 0;
  view.block_stride = 0;
  return view;
}

/// A list of sequences laid end to end. num_seqs = 0 means one sequence that fills the views.
/// Sequence b has query rows q_offsets[b] .. q_offsets[b+1]-1 and k_offsets[b+1] - k_offsets[b]
/// keys (rows k_offsets[b] .. of a view that is not paged). Its queries are the last of its
/// positions: query row r sits at position Tk - Tq + r and sees the keys 0 .. Tk - Tq + r. On host
/// backends a sequence may have no queries, or no keys either: its scores are 0.
typedef struct tsp_batch {
  const int32_t*
      q_offsets;  ///< [num_seqs + 1] host memory, ascending from 0; null when num_seqs = 0
  const int32_t*
      k_offsets;  ///< [num_seqs + 1] host memory, ascending from 0; null when num_seqs = 0
  int32_t num_seqs;
  int32_t reserved;  ///< 0
} tsp_batch_t;

/// Which tokens each set keeps: index i of set s of sequence b is
///   indices[b * seq_stride + s * set_stride + i],  i < kept[b]
/// ascending, unique, positions in the sequence. kept[b] = Tk of the sequence means dense. Checked
/// where the lists lie in host memory, taken on trust on a GPU.
typedef struct tsp_index_sets {
  int32_t* indices;    ///< device memory of the context; null = not given
  int32_t* kept;       ///< [num_seqs or 1] tokens each set of the sequence keeps
  int32_t num_sets;    ///< S: Hq, Hkv or 1
  int32_t reserved;    ///< 0
  int64_t set_stride;  ///< entries from a set to the next, at least the longest Tk
  int64_t seq_stride;  ///< entries from a sequence to the next; ignored for one sequence
} tsp_index_sets_t;

/// Which keys each block of queries reads. Blocks are of entries: of the head's list where index
/// sets are given, of positions where not. With N entries, of which the first that is a query is
/// e0, key block n is the entries n * block .. (n + 1) * block - 1, query block m the entries
/// e0 + m * block .. e0 + (m + 1) * block - 1, both up to N - 1: in a chunk of a prompt, or with
/// lists, query blocks need not start where key blocks do. The query at entry i reads entry j <= i
/// where j is in a key block of its query block, or a column of its set; each once.
///
/// The key blocks of query block m are
///   blocks[b * seq_stride + s * set_stride + m * row_stride + n],
///   n < counts[b * count_seq_stride + s * count_set_stride + m]
/// ascending, unique, none behind the last entry of the query block. Those that hold an entry of
/// the query block are among them, so a row always reads itself. Query head h uses set s =
/// h / (Hq / num_sets), whatever the number of index sets is. Checked where the lists lie in host
/// memory; on a GPU, where the host cannot look without waiting, every row of a sequence with a
/// list that breaks a rule becomes NaN.
typedef struct tsp_block_sets {
  int32_t* blocks;       ///< device memory of the context; null = not given: every key is read
  int32_t* counts;       ///< key blocks of each query block
  int32_t* columns;      ///< entries that every query block reads, ascending, unique:
                         ///< columns[b * column_seq_stride + s * column_set_stride + n],
                         ///< n < num_columns[b * num_sets + s]; null = none
  int32_t* num_columns;  ///< [num_seqs or 1, num_sets]
  int32_t block;         ///< entries of a block, 16 .. 512, a multiple of 16; 0 = 128
  int32_t num_sets;      ///< Hq, Hkv or 1
  int64_t row_stride;    ///< entries of `blocks` from a query block to the next
  int64_t set_stride;
  int64_t seq_stride;
  int64_t count_set_stride;  ///< entries of `counts`
  int64_t count_seq_stride;
  int64_t column_set_stride;  ///< entries of `columns`
  int64_t column_seq_stride;
} tsp_block_sets_t;

/// How the key blocks of a query block are chosen: tsp_estimate() says what each kind computes.
typedef enum tsp_pattern_kind {
  TSP_PATTERN_NONE = 0,         ///< every block
  TSP_PATTERN_XATTENTION = 1,   ///< antidiagonal sums, to a share of the mass
  TSP_PATTERN_FLEXPREFILL = 2,  ///< the last query block's lines, or pooled blocks where those fit
  TSP_PATTERN_MINFERENCE = 3,   ///< the last queries' vertical and slash lines, in fixed numbers
  TSP_PATTERN_POOLED = 4,       ///< mean-pooled blocks, to a share of the mass
  TSP_PATTERN_FLASH = 5,        ///< mean-pooled keys, relative to the strongest block
} tsp_pattern_kind_t;

/// A pattern and its parameters; tsp_pattern_init() fills in the method's own. What a kind does not
/// use is not looked at.
typedef struct tsp_pattern {
  int32_t kind;             ///< tsp_pattern_kind_t; 0 = none
  int32_t block;            ///< entries of a block, multiple of 16, 16..512; default 128
  int32_t share;            ///< tsp_share_t, who owns a list of blocks; default TSP_SHARE_HEAD
  int32_t stride;           ///< xattention: 2..64, divides block; default 16
  float threshold;          ///< xattention, pooled: mass to reach, (0, 1], 1 = all; default 0.9
  float gamma;              ///< flexprefill: mass to cover, (0, 1], 1 = all; default 0.95
  float tau;                ///< flexprefill: distance below which pooled blocks decide, [0, 1];
                            ///< 0 = never; default 0.1
  float alpha;              ///< flash: share of the strongest block, [0, 1], 0 = all; default 0.1
  int32_t min_budget;       ///< flexprefill: entries of each kind of line, >= 0; default 1024
  int32_t vertical;         ///< minference: columns, >= 1; default 1000
  int32_t slash;            ///< minference: slashes, >= 1; default 6096
  int32_t sink_blocks;      ///< first key blocks that are always in, >= 0
  int32_t local_blocks;     ///< key blocks before the query block's own, always in, >= 0
  int32_t last_blocks;      ///< last query blocks, which read every block, >= 0
  const float* thresholds;  ///< host memory [block sets], in place of `threshold`; null = not given
} tsp_pattern_t;

#ifdef __cplusplus
}  // extern "C"
#endif
#endif  // TOKENSPARSE_TYPES_H_
