// SPDX-License-Identifier: MIT
// The engines of attend, a file each: every one writes the rows of kept tokens and, where `dropped`
// asks for zeros, all others. Values of V that are not finite count as 0 and set their flags.
#pragma once

#include "cuda/attend/attend_task.h"
#include "cuda/state.h"

namespace tsp::cuda {

[[nodiscard]] tsp_status_t run_own(State& state, const AttendTask& task, const AttendPlan& plan,
                                   const AttendMemory& memory, cudaStream_t stream);
[[nodiscard]] tsp_status_t run_cudnn_direct(State& state, const AttendTask& task,
                                            const AttendPlan& plan, const AttendMemory& memory,
                                            cudaStream_t stream);
[[nodiscard]] tsp_status_t run_cudnn_groups(State& state, const AttendTask& task,
                                            const AttendPlan& plan, const AttendMemory& memory,
                                            cudaStream_t stream);
[[nodiscard]] tsp_status_t run_sm90(State& state, const AttendTask& task, const AttendPlan& plan,
                                    const AttendMemory& memory, cudaStream_t stream);
/// Zeros where a row was left out and `dropped` asks for them: for kernels that scatter.
[[nodiscard]] tsp_status_t clear_left_out(const AttendTask& task, cudaStream_t stream);
/// Builds what cuDNN needs for the plan, at its first use; false where it refuses.
bool prepare_cudnn(CudnnAttend& cudnn, const AttendTask& task, AttendPlan& plan);

}  // namespace tsp::cuda
