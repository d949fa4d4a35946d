// SPDX-License-Identifier: MIT
// The steps around an engine: lengths on the device before it, NaN and infinities of V and the rows
// that a set left out behind it.
#include "cuda/attend/attend_run.h"

#include "cuda/attend/engines.h"
#include "cuda/instances.h"
#include "cuda/launch.h"

namespace tsp::cuda {
namespace {

/// The plan, with what cuDNN needs for it; without cuDNN where it refuses.
AttendPlan prepare(State& state, const AttendTask& task) {
  AttendPlan plan = plan_attend(task.sizes(), state.cudnn != nullptr);
  if (plan.engine == Engine::kOwn || prepare_cudnn(*state.cudnn, task, plan)) return plan;
  return plan_attend(task.sizes(), false);
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
    case Engine::kOwn:
      break;
  }
  return run_own(state, task, plan, memory, stream);
}

tsp_status_t poison(const State& state, const AttendTask& task, const AttendPlan& plan,
                    const AttendArgs& args, int32_t heads_per_unit, cudaStream_t stream) {
  const PoisonArgs poison_args{args,
                               args.flags,
                               plan.flag_stride,
                               heads_per_unit,
                               task.params->q.dtype == TSP_BF16,
                               task.head_dim()};
  return launch_poison(poison_args, state.num_sms, stream);
}

/// Rows that their set left out, over the last `band` tokens. Flags are by token here.
tsp_status_t band(const State& state, const AttendTask& task, const AttendPlan& plan,
                  const AttendMemory& memory, cudaStream_t stream) {
  AttendArgs a = attend_args(task, memory);
  a.dropped_sets = a.sets;
  a.sets = Sets{};
  a.sets.heads_per_set = a.group;
  a.q_first = nullptr;
  a.band = task.params->band;
  a.dropped_only = true;
  TSP_RETURN_IF_ERROR(
      check(cudaMemsetAsync(memory.flags, 0,
                            static_cast<size_t>(memory.num_flags) * sizeof(uint32_t), stream),
            "attend: memset"));
  CompressArgs scan = compress_args(task, plan, memory, {0, task.kv_heads(), 1, a.group});
  scan.sets = a.sets;
  TSP_RETURN_IF_ERROR(launch_compress(scan, task.head_dim(), stream));
  TSP_RETURN_IF_ERROR(launch_attend_any(task.params->q.dtype, task.head_dim(), a, stream));
  return poison(state, task, plan, a, a.group, stream);
}

}  // namespace

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
  TSP_RETURN_IF_ERROR(run_engine(state, task, plan, memory, stream));
  TSP_RETURN_IF_ERROR(poison(state, task, plan, attend_args(task, memory), plan.q_heads, stream));
  if (!task.sparse || task.params->dropped != TSP_DROPPED_LOCAL) return TSP_OK;
  return band(state, task, plan, memory, stream);
}

}  // namespace tsp::cuda
