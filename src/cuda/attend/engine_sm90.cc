// SPDX-License-Identifier: MIT
// The warpgroup kernel of compute capability 9.0 as an engine. It gathers Q and scatters O and the
// log-sum-exp by itself; the copy engine that brings it K and V cannot gather, so those come as
// compact copies of a group of units. Without lists K is the caller's tensor.
#include <algorithm>

#include "cuda/attend/engines.h"
#include "cuda/attend/sm90/attend_sm90.h"

namespace tsp::cuda {
namespace {

/// Rows of V zeroed behind the last one: a K tile.
constexpr int32_t kPadRows = 128;

AttendSm90Params sm90_params(const State& state, const AttendTask& task,
                             const AttendMemory& memory) {
  const AttendArgs args = attend_args(task, memory);
  AttendSm90Params p;
  p.q = args.q;
  p.out = args.out;
  p.lse = args.lse;
  p.sets = args.sets;
  p.blocks = args.blocks;
  p.q_first = args.q_first;
  p.tickets = memory.tickets;
  p.q_len = args.q_len;
  p.k_len = args.k_len;
  p.scale_log2 = args.scale_log2;
  p.num_sms = state.num_sms;
  p.head_dim = task.head_dim();
  p.bf16 = task.params->q.dtype == TSP_BF16;
  return p;
}

}  // namespace

tsp_status_t run_sm90(State& state, const AttendTask& task, const AttendPlan& plan,
                      const AttendMemory& memory, cudaStream_t stream) {
  const int32_t dim = task.head_dim();
  const Copies& copies = memory.lanes[0];
  AttendSm90Params p = sm90_params(state, task, memory);
  p.k_rows = plan.capacity;
  p.heads_per_unit = plan.q_heads;
  p.v = compact_rows(copies.v, plan.capacity, dim);
  for (int32_t begin = 0; begin < plan.units; begin += plan.group_units) {
    const int32_t count = std::min(plan.group_units, plan.units - begin);
    CompressArgs c = compress_args(task, plan, memory, {begin, count, plan.per_kv, plan.q_heads});
    c.v_out = p.v;
    c.capacity = plan.capacity;
    c.pad_rows = kPadRows;
    p.k = k_rows(task.params->k, task.seq);
    if (plan.gather) {
      c.k = p.k;
      c.k_out = p.k = compact_rows(copies.k, plan.capacity, dim);
    }
    TSP_RETURN_IF_ERROR(launch_compress(c, dim, stream));
    p.head_begin = begin * plan.q_heads;
    p.num_heads = count * plan.q_heads;
    TSP_RETURN_IF_ERROR(launch_attend_sm90(p, stream));
  }
  return clear_left_out(task, stream);
}

}  // namespace tsp::cuda
