// SPDX-License-Identifier: MIT
#include "cuda/attend_op.h"

#include <algorithm>

#include "cuda/attend_plan.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"

namespace tsp::cuda {
namespace {

constexpr float kLog2E = 1.4426950408889634f;

/// Compact copies of a group of heads.
struct Copies {
  uint16_t* k;  // [group units, capacity, D]
  uint16_t* v;
  uint16_t* q;  // [group units * q_heads, q_capacity, D]; null: in `out`
  uint16_t* out;
  float* lse;  // [group units * q_heads, q_capacity]
  void* cudnn;
};

/// Where the pieces lie.
struct Memory {
  uint32_t* flags;  // a word for any, then [units, flag_stride]
  int64_t num_flags;
  int32_t* q_first;  // [S]
  int32_t* q_lens;   // [1]
  int32_t* kv_lens;  // [1]
  Copies lanes[kMaxLanes];
};

Memory place(const AttendLayout& layout, const tsp_attend_params_t& p, int32_t num_sets,
             Scratch& scratch) {
  Memory m{};
  // The band pass flags by KV head over all tokens: never more than the units' flags.
  m.num_flags = 1 + layout.units * layout.flag_stride;
  m.flags = scratch.take<uint32_t>(m.num_flags);
  m.q_first = scratch.take<int32_t>(num_sets);
  m.q_lens = scratch.take<int32_t>(1);
  m.kv_lens = scratch.take<int32_t>(1);
  if (!layout.cudnn) return m;
  for (int32_t i = 0; i < layout.lanes; ++i) {
    Copies& c = m.lanes[i];
    if (!layout.gather) {
      c.v = scratch.take<uint16_t>(int64_t{layout.units} * layout.capacity * p.q.dim);
    } else {
      const int64_t kv = int64_t{layout.group_units} * layout.capacity * p.q.dim;
      const int64_t rows = int64_t{layout.group_units} * layout.q_heads * layout.q_capacity;
      c.k = scratch.take<uint16_t>(kv);
      c.v = scratch.take<uint16_t>(kv);
      if (!layout.q_in_out) c.q = scratch.take<uint16_t>(rows * p.q.dim);
      c.out = scratch.take<uint16_t>(rows * p.q.dim);
      if (p.lse.data != nullptr) c.lse = scratch.take<float>(rows);
    }
    c.cudnn = scratch.take<unsigned char>(static_cast<int64_t>(layout.cudnn_bytes));
  }
  return m;
}

struct Run {
  State& state;
  const AttendTask& task;
  const tsp_attend_params_t& p;
  const AttendLayout& layout;
  const Memory& memory;
  cudaStream_t stream;

  int32_t head_dim() const { return static_cast<int32_t>(p.q.dim); }
  uint32_t exponent_mask() const { return p.q.dtype == TSP_BF16 ? 0x7f807f80u : 0x7c007c00u; }

  AttendArgs attend_args() const {
    AttendArgs a{};
    a.q = q_rows(p.q, task.seq);
    a.k = k_rows(p.k, task.seq);
    a.v = k_rows(p.v, task.seq);
    a.out = q_rows(p.out, task.seq);
    a.lse = make_values(p.lse, task.seq.q_begin);
    a.sets = task.sets;
    if (!task.sparse) a.sets.heads_per_set = static_cast<int32_t>(p.q.heads / task.num_sets);
    a.q_first = task.sparse ? memory.q_first : nullptr;
    a.q_len = task.seq.q_len;
    a.k_len = task.seq.k_len;
    a.group = static_cast<int32_t>(p.q.heads / p.k.heads);
    a.num_heads = static_cast<int32_t>(p.q.heads);
    a.scale_log2 = p.scale * kLog2E;
    a.flags = memory.flags;
    a.band = kNoBand;
    return a;
  }

  CompressArgs compress_args(const Sets& sets, const Units& units) const {
    CompressArgs a{};
    a.v = k_rows(p.v, task.seq);
    a.sets = sets;
    a.units = units;
    a.flags = memory.flags;
    a.flag_stride = layout.flag_stride;
    a.exponent_mask = exponent_mask();
    a.q_pos = task.seq.q_pos();
    a.k_len = task.seq.k_len;
    a.capacity = task.seq.k_len;
    return a;
  }

  tsp_status_t clear_flags() const {
    return check(cudaMemsetAsync(memory.flags, 0,
                                 static_cast<size_t>(memory.num_flags) * sizeof(uint32_t), stream),
                 "attend: memset");
  }
  Sets effective_sets() const { return attend_args().sets; }
  Units all_units() const { return {0, layout.units, layout.per_kv, layout.q_heads}; }

  tsp_status_t lengths() const {
    const int32_t q_len = layout.gather ? layout.q_capacity : task.seq.q_len;
    return launch_lengths(
        {effective_sets(), task.num_sets, task.seq.q_pos(), task.seq.k_len, q_len, memory.q_first,
         memory.q_lens, memory.kv_lens, memory.flags, memory.num_flags},
        stream);
  }

  /// Flags of V without a copy.
  tsp_status_t scan() const {
    return launch_compress(compress_args(effective_sets(), all_units()), head_dim(), stream);
  }

  tsp_status_t poison(const AttendArgs& args, int32_t heads_per_unit) const {
    const PoisonArgs poison_args{args,           memory.flags,          layout.flag_stride,
                                 heads_per_unit, p.q.dtype == TSP_BF16, head_dim()};
    return launch_poison(poison_args, state.num_sms, stream);
  }

  tsp_status_t decompress(const Rows& in, const Values& lse_in, int32_t head_begin,
                          int32_t num_heads) const {
    DecompressArgs a{};
    a.in = in;
    a.lse_in = lse_in;
    a.out = q_rows(p.out, task.seq);
    a.lse_out = make_values(p.lse, task.seq.q_begin);
    a.sets = effective_sets();
    a.in_end = layout.gather ? layout.q_capacity : 0;
    a.head_begin = head_begin;
    a.num_heads = num_heads;
    a.q_len = task.seq.q_len;
    a.k_len = task.seq.k_len;
    a.clear_dropped = p.dropped == TSP_DROPPED_ZERO;
    return launch_decompress(a, head_dim(), stream);
  }

  /// Our kernel: gathers and scatters by itself.
  tsp_status_t own() const {
    TSP_RETURN_IF_ERROR(scan());
    TSP_RETURN_IF_ERROR(launch_attend_any(p.q.dtype, head_dim(), attend_args(), stream));
    if (!task.sparse || p.dropped != TSP_DROPPED_ZERO) return TSP_OK;
    return decompress(Rows{}, Values{}, 0, static_cast<int32_t>(p.q.heads));
  }

  /// cuDNN on the caller's tensors, but for V: a copy of it without NaN and infinities.
  tsp_status_t direct() const {
    const Copies& copies = memory.lanes[0];
    CompressArgs c = compress_args(effective_sets(), all_units());
    c.v_out = compact(copies.v, layout.capacity);
    TSP_RETURN_IF_ERROR(launch_compress(c, head_dim(), stream));
    const AttendArgs a = attend_args();
    return state.cudnn->run(direct_shape(layout, p, task.seq),
                            {a.q.data, a.k.data, copies.v, a.out.data, a.lse.data, memory.q_lens,
                             memory.kv_lens, copies.cudnn},
                            stream);
  }

  Rows compact(uint16_t* data, int32_t capacity) const {
    Rows rows;
    rows.data = data;
    rows.token_stride = p.q.dim;
    rows.head_stride = int64_t{capacity} * p.q.dim;
    return rows;
  }

  /// cuDNN on compact copies of a group of units.
  tsp_status_t group(int32_t begin, int32_t count, const Copies& copies) const {
    const int32_t head_begin = begin * layout.q_heads;
    const int32_t num_heads = count * layout.q_heads;
    CompressArgs c = compress_args(effective_sets(), {begin, count, layout.per_kv, layout.q_heads});
    c.q = q_rows(p.q, task.seq);
    c.k = k_rows(p.k, task.seq);
    c.q_end = layout.q_capacity;
    c.pad_rows = kPadRows;
    c.capacity = layout.capacity;
    c.k_out = compact(copies.k, layout.capacity);
    c.v_out = compact(copies.v, layout.capacity);
    if (layout.q_in_out) {
      c.q_out = q_rows(p.out, task.seq);
      c.q_out.data += head_begin * p.out.head_stride;
    } else {
      c.q_out = compact(copies.q, layout.q_capacity);
    }
    TSP_RETURN_IF_ERROR(launch_compress(c, head_dim(), stream));
    TSP_RETURN_IF_ERROR(state.cudnn->run(group_shape(layout, p, count),
                                         {c.q_out.data, copies.k, copies.v, copies.out, copies.lse,
                                          memory.q_lens, memory.kv_lens, copies.cudnn},
                                         stream));
    return decompress(compact(copies.out, layout.q_capacity),
                      Values{copies.lse, 1, layout.q_capacity}, head_begin, num_heads);
  }

  /// All groups, in turn on the caller's stream and on the one beside it.
  tsp_status_t groups() const {
    Run lanes[kMaxLanes] = {*this, *this};
    if (layout.lanes > 1) {
      TSP_RETURN_IF_ERROR(state.side.fork(stream));
      lanes[1].stream = state.side.stream();
    }
    tsp_status_t status = TSP_OK;
    int32_t lane = 0;
    for (int32_t begin = 0; begin < layout.units && status == TSP_OK;
         begin += layout.group_units, lane = (lane + 1) % layout.lanes) {
      const int32_t count = std::min(layout.group_units, layout.units - begin);
      status = lanes[lane].group(begin, count, memory.lanes[lane]);
    }
    // After a failure too: a capture must find its way back.
    if (layout.lanes > 1) TSP_RETURN_IF_ERROR(state.side.join(stream));
    return status;
  }

  /// Rows that their set left out, over the last `band` tokens. Flags are by token here.
  tsp_status_t band() const {
    AttendArgs a = attend_args();
    a.dropped_sets = a.sets;
    a.sets = Sets{};
    a.sets.heads_per_set = a.group;
    a.q_first = nullptr;
    a.band = p.band;
    a.dropped_only = true;
    TSP_RETURN_IF_ERROR(clear_flags());
    const auto kv_heads = static_cast<int32_t>(p.k.heads);
    TSP_RETURN_IF_ERROR(
        launch_compress(compress_args(a.sets, {0, kv_heads, 1, a.group}), head_dim(), stream));
    TSP_RETURN_IF_ERROR(launch_attend_any(p.q.dtype, head_dim(), a, stream));
    return poison(a, a.group);
  }
};

}  // namespace

size_t attend_scratch_bytes(const AttendLayout& layout, const tsp_attend_params_t& params,
                            int32_t num_sets) {
  Scratch scratch(nullptr);
  place(layout, params, num_sets, scratch);
  return scratch.used();
}

tsp_status_t run_attend(State& state, const AttendTask& task, void* scratch_memory,
                        cudaStream_t stream) {
  const tsp_attend_params_t& p = *task.params;
  const AttendLayout layout = plan_attend(state, p, task.seq, task.sparse, task.num_sets);
  Scratch scratch(scratch_memory);
  const Memory memory = place(layout, p, task.num_sets, scratch);
  const Run run{state, task, p, layout, memory, stream};
  TSP_RETURN_IF_ERROR(run.lengths());
  if (!layout.cudnn) {
    TSP_RETURN_IF_ERROR(run.own());
  } else if (!layout.gather) {
    TSP_RETURN_IF_ERROR(run.direct());
  } else {
    TSP_RETURN_IF_ERROR(run.groups());
  }
  TSP_RETURN_IF_ERROR(run.poison(run.attend_args(), layout.q_heads));
  if (task.sparse && p.dropped == TSP_DROPPED_LOCAL) return run.band();
  return TSP_OK;
}

}  // namespace tsp::cuda
