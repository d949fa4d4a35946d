// SPDX-License-Identifier: MIT
// Causal attention on Hopper's warpgroup products (sm_90a), bf16 and f16, head dims 64 and 128.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/views.h"
#include "tokensparse/types.h"

namespace tsp::cuda {

/// One sequence. A query row is an entry of its head's list: entry e is position list[e] (e without
/// a list), and sees the entries up to itself. Tiles of 128 rows begin at the list's first entry
/// that is a query. Lengths come from the device: nothing here depends on them. A row that sees no
/// key becomes zeros, its log-sum-exp -inf. Rows and strides are multiples of 16 bytes.
struct AttendSm90Params {
  Rows q;      // [Tq, Hq, D] row of position p: p - (k_len - q_len); never paged, as k, v, out
  Rows k;      // [k_rows, num_heads / heads_per_unit, D] by entry: compact copies, or the tensor
  Rows v;      //   itself without a list. Of v, entries up to the next multiple of 128 are finite
  Rows out;    // [Tq, Hq, D] rows of the lists are written, no others
  Values lse;  // [Tq, Hq] natural logarithm; data null = not wanted
  Sets sets;   // the lists; indices null = every token
  const int32_t* q_first = nullptr;  // [S] first entry that is a query; null = k_len - q_len
  KeyBlocks blocks;
  int32_t* tickets = nullptr;  // [2] zero before; zero again afterwards
  int32_t q_len = 0;           // Tq
  int32_t k_len = 0;           // Tk
  int32_t k_rows = 0;          // rows that k and v have: no row beyond is read, zeros instead
  int32_t head_begin = 0;      // heads [head_begin, head_begin + num_heads); head 0 of k is theirs
  int32_t num_heads = 0;       // a multiple of heads_per_unit
  int32_t heads_per_unit = 1;  // query heads that read one head of k and v
  float scale_log2 = 0;        // scale * log2(e), >= 0
  int32_t num_sms = 0;
  int32_t head_dim = 0;  // 64 or 128
  bool bf16 = false;     // else f16
};

[[nodiscard]] tsp_status_t launch_attend_sm90(const AttendSm90Params& params, cudaStream_t stream);

}  // namespace tsp::cuda
