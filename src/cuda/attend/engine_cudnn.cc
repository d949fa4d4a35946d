// SPDX-License-Identifier: MIT
// cuDNN as an engine: on the caller's tensors, or on compact copies of groups of heads.
#include <algorithm>

#include "cuda/attend/engines.h"

namespace tsp::cuda {
namespace {

/// Rows of V zeroed behind the last one: no tile of cuDNN is longer.
constexpr int32_t kPadRows = 256;

/// `count` units of compact copies.
CudnnShape group_shape(const AttendTask& task, const AttendPlan& plan, int32_t count) {
  const tsp_attend_params_t& p = *task.params;
  CudnnShape shape;
  const int64_t dim = p.q.dim;
  shape.dtype = p.q.dtype;
  shape.head_dim = task.head_dim();
  shape.scale = p.scale;
  shape.with_lse = p.lse.data != nullptr;
  shape.q_heads = count * plan.q_heads;
  shape.kv_heads = count;
  shape.q_len = plan.q_capacity;
  shape.kv_len = plan.capacity;
  const int64_t kv_head = plan.capacity * dim, q_head = plan.q_capacity * dim;
  const auto strides = [&](int64_t head, int64_t token, int32_t heads) {
    return CudnnShape::Strides{heads * head, head, token};
  };
  shape.k = shape.v = strides(kv_head, dim, shape.kv_heads);
  shape.out = strides(q_head, dim, shape.q_heads);
  shape.q =
      plan.q_in_out ? strides(p.out.head_stride, p.out.token_stride, shape.q_heads) : shape.out;
  if (shape.with_lse) shape.lse = strides(plan.q_capacity, 1, shape.q_heads);
  return shape;
}

/// The caller's own tensors, but for a copy of V.
CudnnShape direct_shape(const AttendTask& task, const AttendPlan& plan) {
  const tsp_attend_params_t& p = *task.params;
  CudnnShape shape;
  shape.dtype = p.q.dtype;
  shape.head_dim = task.head_dim();
  shape.q_heads = task.q_heads();
  shape.kv_heads = task.kv_heads();
  shape.q_len = task.seq.q_len;
  shape.kv_len = task.seq.k_len;
  shape.with_lse = p.lse.data != nullptr;
  shape.padded = plan.padded;
  shape.scale = p.scale;
  const auto strides = [](const tsp_tensor_t& t, int64_t tokens) {
    return CudnnShape::Strides{std::max(tokens * t.token_stride, t.heads * t.head_stride),
                               t.head_stride, t.token_stride};
  };
  shape.q = strides(p.q, task.seq.q_len);
  shape.k = strides(p.k, task.seq.k_len);
  const int64_t v_head = plan.capacity * p.v.dim;
  shape.v = {p.v.heads * v_head, v_head, p.v.dim};
  shape.out = strides(p.out, task.seq.q_len);
  if (shape.with_lse) shape.lse = strides(p.lse, task.seq.q_len);
  return shape;
}

/// Units [begin, begin + count): gather, attend, scatter.
tsp_status_t run_group(CudnnAttend& cudnn, const AttendTask& task, const AttendPlan& plan,
                       const AttendMemory& memory, const Copies& copies, int32_t begin,
                       int32_t count, cudaStream_t stream) {
  const tsp_attend_params_t& p = *task.params;
  const int32_t dim = task.head_dim();
  const int32_t head_begin = begin * plan.q_heads;
  CompressArgs c = compress_args(task, plan, memory, {begin, count, plan.per_kv, plan.q_heads});
  c.q = q_rows(p.q, task.seq);
  c.k = k_rows(p.k, task.seq);
  c.q_end = plan.q_capacity;
  c.pad_rows = kPadRows;
  c.capacity = plan.capacity;
  c.k_out = compact_rows(copies.k, plan.capacity, dim);
  c.v_out = compact_rows(copies.v, plan.capacity, dim);
  if (plan.q_in_out) {
    c.q_out = q_rows(p.out, task.seq);
    c.q_out.data += head_begin * p.out.head_stride;
  } else {
    c.q_out = compact_rows(copies.q, plan.q_capacity, dim);
  }
  TSP_RETURN_IF_ERROR(launch_compress(c, dim, stream));
  TSP_RETURN_IF_ERROR(cudnn.run(group_shape(task, plan, count),
                                {c.q_out.data, copies.k, copies.v, copies.out, copies.lse,
                                 memory.q_lens, memory.kv_lens, copies.cudnn},
                                stream));
  DecompressArgs d = decompress_args(task);
  d.in = compact_rows(copies.out, plan.q_capacity, dim);
  d.lse_in = Values{copies.lse, 1, plan.q_capacity};
  d.in_end = plan.q_capacity;
  d.head_begin = head_begin;
  d.num_heads = count * plan.q_heads;
  return launch_decompress(d, dim, stream);
}

}  // namespace

bool prepare_cudnn(CudnnAttend& cudnn, const AttendTask& task, AttendPlan& plan) {
  if (plan.engine == Engine::kCudnnDirect) {
    for (const bool padded : {false, true}) {
      plan.padded = padded;
      if (cudnn.prepare(direct_shape(task, plan), &plan.cudnn_bytes)) return true;
    }
    return false;
  }
  for (int32_t begin = 0; begin < plan.units; begin += plan.group_units) {
    const int32_t count = std::min(plan.group_units, plan.units - begin);
    size_t bytes = 0;
    if (!cudnn.prepare(group_shape(task, plan, count), &bytes)) return false;
    plan.cudnn_bytes = std::max(plan.cudnn_bytes, bytes);
  }
  return true;
}

tsp_status_t run_cudnn_direct(State& state, const AttendTask& task, const AttendPlan& plan,
                              const AttendMemory& memory, cudaStream_t stream) {
  const Copies& copies = memory.lanes[0];
  CompressArgs c = compress_args(task, plan, memory, all_units(plan));
  c.v_out = compact_rows(copies.v, plan.capacity, task.head_dim());
  TSP_RETURN_IF_ERROR(launch_compress(c, task.head_dim(), stream));
  const AttendArgs a = attend_args(task, memory);
  return state.cudnn->run(direct_shape(task, plan),
                          {a.q.data, a.k.data, copies.v, a.out.data, a.lse.data, memory.q_lens,
                           memory.kv_lens, copies.cudnn},
                          stream);
}

tsp_status_t run_cudnn_groups(State& state, const AttendTask& task, const AttendPlan& plan,
                              const AttendMemory& memory, cudaStream_t stream) {
  // In turn on the caller's stream and on the one beside it.
  cudaStream_t lanes[kMaxLanes] = {stream, stream};
  if (plan.lanes > 1) {
    TSP_RETURN_IF_ERROR(state.side.fork(stream));
    lanes[1] = state.side.stream();
  }
  tsp_status_t status = TSP_OK;
  int32_t lane = 0;
  for (int32_t begin = 0; begin < plan.units && status == TSP_OK;
       begin += plan.group_units, lane = (lane + 1) % plan.lanes) {
    const int32_t count = std::min(plan.group_units, plan.units - begin);
    status =
        run_group(*state.cudnn, task, plan, memory, memory.lanes[lane], begin, count, lanes[lane]);
  }
  // After a failure too: a capture must find its way back.
  if (plan.lanes > 1) TSP_RETURN_IF_ERROR(state.side.join(stream));
  return status;
}

}  // namespace tsp::cuda
