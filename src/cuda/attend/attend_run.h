// SPDX-License-Identifier: MIT
// attend on one sequence; attend and prefill share it.
#pragma once

#include "cuda/attend/attend_task.h"
#include "cuda/state.h"

namespace tsp::cuda {

size_t attend_scratch_bytes(State& state, const AttendTask& task);
[[nodiscard]] tsp_status_t run_attend(State& state, const AttendTask& task, void* scratch,
                                      cudaStream_t stream);

}  // namespace tsp::cuda
