// SPDX-License-Identifier: MIT
// The rows that a set left out, over the first keys and a band: causal attention of row i over the
// keys j < sink and i - band < j <= i.
#pragma once

#include <cuda_runtime_api.h>

#include "core/error.h"
#include "cuda/attend/attend_config.h"
#include "cuda/views.h"

namespace tsp::cuda {

struct LeftOutArgs {
  Rows q, k, v, out;
  Values lse;
  Sets sets;
  const int32_t* q_first;  // [S] list entry of the first query row
  int32_t* rows;           // [S, Tq] positions of the left-out queries, ascending
  int32_t num_sets;        // S
  int32_t q_len;           // Tq
  int32_t k_len;           // Tk
  int32_t num_heads;       // Hq
  int32_t group;           // G
  int32_t pack;            // left_out_pack()
  int32_t sink;            // at most Tk, as band
  int32_t band;
  float scale_log2;  // scale * log2(e)
};

/// Blocks of the attention: enough for a set that left out every row.
inline unsigned left_out_blocks(const LeftOutArgs& a) {
  const int64_t positions = kLeftOutRows / a.pack;
  return static_cast<unsigned>((a.q_len + positions - 1) / positions * (a.num_heads / a.pack));
}

/// Fills `rows`.
tsp_status_t launch_left_out_rows(const LeftOutArgs& args, cudaStream_t stream);
/// The attention; reads `rows`. Rows that see a NaN or an infinity of V get it.
template <typename Type, int kHeadDim>
tsp_status_t launch_left_out(const LeftOutArgs& args, cudaStream_t stream);
/// The same on warpgroup products (sm_90a).
template <typename Type, int kHeadDim>
tsp_status_t launch_wide_left_out(const LeftOutArgs& args, cudaStream_t stream);

}  // namespace tsp::cuda
