// SPDX-License-Identifier: MIT
// estimate on one sequence, as the op and prefill run it.
#pragma once

#include "cuda/estimate/estimate.h"
#include "cuda/scratch.h"
#include "tokensparse/estimate.h"

namespace tsp::cuda {

struct EstimateCall {
  const tsp_estimate_params_t& params;  // its selected and blocks' lists are not looked at
  Sets sets;                            // of the sequence
  int32_t num_lists;                    // of sets; 0 = every token
  BlockLists out;                       // of the sequence
  bool warpgroups;                      // wgmma: compute capability 9.0
  int32_t num_sms;
};

size_t estimate_scratch_bytes(const EstimateCall& call, const Seq& seq);
[[nodiscard]] tsp_status_t run_estimate(const EstimateCall& call, const Seq& seq, void* scratch,
                                        cudaStream_t stream);

}  // namespace tsp::cuda
