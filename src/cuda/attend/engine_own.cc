// SPDX-License-Identifier: MIT
#include "cuda/attend/engines.h"
#include "cuda/instances.h"

namespace tsp::cuda {

tsp_status_t run_own(State&, const AttendTask& task, const AttendPlan& plan,
                     const AttendMemory& memory, cudaStream_t stream) {
  // Flags of V without a copy.
  TSP_RETURN_IF_ERROR(
      launch_compress(compress_args(task, plan, memory, all_units(plan)), task.head_dim(), stream));
  TSP_RETURN_IF_ERROR(
      launch_attend_any(task.params->q.dtype, task.head_dim(), attend_args(task, memory), stream));
  if (!task.sparse || task.params->dropped != TSP_DROPPED_ZERO) return TSP_OK;
  return launch_decompress(decompress_args(task), task.head_dim(), stream);
}

}  // namespace tsp::cuda
