// SPDX-License-Identifier: MIT
// Gather of kept rows, scatter of their results, and the lengths that both leave on the device.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/attend/attend_config.h"
#include "cuda/views.h"

namespace tsp::cuda {

/// A unit is one head of the compact K and V: a query head when every head owns its set, else a KV
/// head. All its query heads read it.
struct Units {
  int32_t begin;  // units [begin, begin + count) of this call
  int32_t count;
  int32_t per_kv;   // units of one KV head
  int32_t q_heads;  // query heads of a unit
  TSP_HOST_DEVICE int32_t kv_head(int32_t unit) const { return unit / per_kv; }
};

struct CompressArgs {
  Rows q, k, v;              // sources; q.data null = no queries wanted
  Rows q_out, k_out, v_out;  // head 0 = the first unit (or its first query head); null = only flag
  Sets sets;
  Units units;
  int32_t q_end;    // > 0: the last kept query goes to row q_end - 1 of q_out, older ones before
                    // it; 0: entry i goes to row i, zeros where it is older than the queries
  uint32_t* flags;  // a word for any, then [all units, flag_stride]: V is not finite
                    // there, and v_out gets 0 instead; null = copy V as it is
  int64_t flag_stride;
  uint32_t exponent_mask;  // both halves of a word: all ones in the exponent
  int32_t q_pos;           // Tk - Tq
  int32_t k_len;
  int32_t pad_rows;  // rows of K and V zeroed after the last, so that 0 * V stays 0
  int32_t capacity;  // rows of the outputs
};
tsp_status_t launch_compress(const CompressArgs& args, int32_t head_dim, cudaStream_t stream);

struct DecompressArgs {
  Rows in;        // compact, head 0 = first of this call; data null = rows are in place
  Values lse_in;  // the same rows
  Rows out;
  Values lse_out;
  Sets sets;
  int32_t in_end;      // > 0: the last entry is row in_end - 1 of `in`; 0: entry i is row i
  int32_t head_begin;  // query heads of this call
  int32_t num_heads;
  int32_t q_len;
  int32_t k_len;
  bool clear_dropped;  // zeros and -inf where a row was left out
};
tsp_status_t launch_decompress(const DecompressArgs& args, int32_t head_dim, cudaStream_t stream);

/// What attention kernels read of lengths, on the device; and their flags, cleared.
struct LengthArgs {
  Sets sets;
  int32_t num_sets;  // entries of q_first
  int32_t q_pos;
  int32_t k_len;
  int32_t q_len;     // into q_lens
  int32_t* q_first;  // [S] first list entry at or after the first query
  int32_t* q_lens;   // [1] query rows
  int32_t* kv_lens;  // [1] keys: kept, or Tk
  uint32_t* flags;   // [num_flags] set to 0
  int64_t num_flags;
};
tsp_status_t launch_lengths(const LengthArgs& args, cudaStream_t stream);

}  // namespace tsp::cuda
