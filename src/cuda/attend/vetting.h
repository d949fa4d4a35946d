// SPDX-License-Identifier: MIT
// Lists of key blocks and page tables lie on the device, where the host cannot look at them without
// waiting. Kernels that follow them would read anywhere or skip a mask, so the device looks first:
// what breaks a rule is replaced by what does no harm and noted, and every row of the sequence
// becomes a NaN in the end.
#pragma once

#include <cuda_runtime_api.h>

#include "core/error.h"
#include "cuda/scratch.h"
#include "cuda/views.h"

namespace tsp::cuda {

/// The tables of one sequence at a time, every page of them >= 0; all null where nothing is paged.
struct PageTables {
  int32_t* k = nullptr;
  int32_t* v = nullptr;
  uint32_t* hole = nullptr;  // not 0: the caller's named no page for a token
};
PageTables place_tables(const tsp_tensor_t& k, const tsp_tensor_t& v, const tsp_batch_t& batch,
                        Scratch& scratch);
/// Fills them from those of the views, whose place they take.
[[nodiscard]] tsp_status_t vet_tables(const PageTables& tables, const Seq& seq, tsp_tensor_t& k,
                                      tsp_tensor_t& v, cudaStream_t stream);

struct VetBlocksArgs {
  KeyBlocks blocks;
  Sets sets;
  const int32_t* q_first;  // as in AttendArgs
  int32_t num_sets;        // of blocks
  int32_t q_len;
  int32_t k_len;
  int32_t* counts;   // [num_sets, query blocks] those of the lists, 0 of a list that breaks a rule
  uint32_t* broken;  // set where there is one
};
[[nodiscard]] tsp_status_t launch_vet_blocks(const VetBlocksArgs& args, cudaStream_t stream);

inline int32_t query_blocks(int32_t q_len) { return (q_len + kKeyBlock - 1) / kKeyBlock; }

}  // namespace tsp::cuda
