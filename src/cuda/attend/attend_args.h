// SPDX-License-Identifier: MIT
// Our own causal attention for sm_80 and later, and what becomes of a NaN in V.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/attend/attend_config.h"
#include "cuda/compress/compress.h"
#include "cuda/views.h"

namespace tsp::cuda {

struct AttendArgs {
  Rows q, k, v, out;
  Values lse;
  Sets sets;  // indices null: every token
  KeyBlocks blocks;
  const int32_t* q_first;  // [S] list entry of the first query row; null: Tk - Tq
  int32_t q_len;           // Tq
  int32_t k_len;           // Tk
  int32_t group;           // G
  int32_t num_heads;       // Hq
  float scale_log2;        // scale * log2(e)
  const uint32_t* flags;   // flags[0] not 0: V has values that are not finite; they count as 0
};

template <typename Type, int kHeadDim>
tsp_status_t launch_attend(const AttendArgs& args, cudaStream_t stream);

/// Rows that see a NaN or an infinity of V get it; all rows become NaN where the caller's lists or
/// tables broke a rule. Nothing to do, and next to no time, when flags[0] is 0 and neither did.
struct PoisonArgs {
  AttendArgs attend;
  const uint32_t* flags;  // as in CompressArgs, in entries of the list
  int64_t flag_stride;
  int32_t heads_per_unit;
  const uint32_t* broken;  // see VetBlocksArgs
  const uint32_t* hole;    // see PageTables; null: not paged
  bool bf16;
  int32_t head_dim;
};
tsp_status_t launch_poison(const PoisonArgs& args, int32_t num_sms, cudaStream_t stream);

}  // namespace tsp::cuda
