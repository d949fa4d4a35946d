// SPDX-License-Identifier: MIT
// The steps around an engine: lengths on the device and a look at the caller's lists before it, the
// rows that a set left out and the NaN and infinities of V behind it.
#include "cuda/attend/attend_run.h"

#include "cuda/attend/engines.h"
#include "cuda/instances.h"
#include "cuda/launch.h"

namespace tsp::cuda {
namespace {

/// The plan, with what cuDNN needs for it; without cuDNN where it refuses.
AttendPlan prepare(State& state, const AttendTask& task) {
  AttendPlan plan = plan_attend(task.sizes(), {state.cudnn != nullptr, state.warpgroups});
  const bool cudnn = plan.engine == Engine::kCudnnDirect || plan.engine == Engine::kCudnnGroups;
  if (!cudnn || prepare_cudnn(*state.cudnn, task, plan)) return plan;
  return plan_attend(task.sizes(), {false, state.warpgroups});
}

tsp_status_t lengths(const AttendTask& task, const AttendPlan& plan, const AttendMemory& memory,
                     cudaStream_t stream) {
  const int32_t q_len = plan.engine == Engine::kCudnnGroups ? plan.q_capacity : task.seq.q_len;
  return launch_lengths(
      {task.sets, task.num_sets, task.seq.q_pos(), task.seq.k_len, q_len, memory.q_first,
       memory.q_lens, memory.kv_lens, memory.flags, memory.num_flags},
      stream);
}

tsp_status_t run_engine(State& state, const AttendTask& task, const AttendPlan& plan,
                        const AttendMemory& memory, cudaStream_t stream) {
  switch (plan.engine) {
    case Engine::kCudnnDirect:
      return run_cudnn_direct(state, task, plan, memory, stream);
    case Engine::kCudnnGroups:
      return run_cudnn_groups(state, task, plan, memory, stream);
    case Engine::kSm90:
      return run_sm90(state, task, plan, memory, stream);
    case Engine::kOwn:
      break;
  }
  return run_own(state, task, plan, memory, stream);
}

tsp_status_t poison(const State& state, const AttendTask& task, const AttendPlan& plan,
                    const AttendMemory& memory, cudaStream_t stream) {
  const PoisonArgs args{attend_args(task, memory),
                        memory.flags,
                        plan.flag_stride,
                        plan.q_heads,
                        memory.broken,
                        task.hole,
                        task.params->q.dtype == TSP_BF16,
                        task.head_dim()};
  return launch_poison(args, state.num_sms, stream);
}

/// Rows that their set left out, over the first and the last keys.
tsp_status_t left_out(const State& state, const AttendTask& task, const AttendMemory& memory,
                      cudaStream_t stream) {
  const LeftOutArgs args = left_out_args(task, memory);
  TSP_RETURN_IF_ERROR(launch_left_out_rows(args, stream));
  return launch_left_out_any(task.params->q.dtype, task.head_dim(), state.warpgroups, args, stream);
}

}  // namespace

tsp_status_t clear_left_out(const AttendTask& task, cudaStream_t stream) {
  if (!task.sparse || task.params->dropped != TSP_DROPPED_ZERO) return TSP_OK;
  return launch_decompress(decompress_args(task), task.head_dim(), stream);
}

size_t attend_scratch_bytes(State& state, const AttendTask& task) {
  Scratch scratch(nullptr);
  place_attend(task, prepare(state, task), scratch);
  return scratch.used();
}

tsp_status_t run_attend(State& state, const AttendTask& task, void* scratch_memory,
                        cudaStream_t stream) {
  const AttendPlan plan = prepare(state, task);
  Scratch scratch(scratch_memory);
  const AttendMemory memory = place_attend(task, plan, scratch);
  TSP_RETURN_IF_ERROR(lengths(task, plan, memory, stream));
  if (task.vets_lists()) {
    TSP_RETURN_IF_ERROR(launch_vet_blocks(vet_blocks_args(task, memory), stream));
  }
  TSP_RETURN_IF_ERROR(run_engine(state, task, plan, memory, stream));
  if (task.attends_left_out()) TSP_RETURN_IF_ERROR(left_out(state, task, memory, stream));
  return poison(state, task, plan, memory, stream);
}

}  // namespace tsp::cuda
