// SPDX-License-Identifier: MIT
#include "cuda/attend/attend_task.h"

#include <algorithm>

namespace tsp::cuda {

constexpr float kLog2E = 1.4426950408889634f;

AttendTask dense_task(const tsp_attend_params_t& params, const Seq& seq) {
  AttendTask task{&params, seq, false, static_cast<int32_t>(params.k.heads), {}, false, nullptr};
  task.sets.heads_per_set = static_cast<int32_t>(params.q.heads / params.k.heads);
  return task;
}

AttendTask sparse_task(const tsp_attend_params_t& params, const Seq& seq, const Sets& sets,
                       int32_t num_sets) {
  return {&params, seq, true, num_sets, sets, false, nullptr};
}

AttendSizes AttendTask::sizes() const {
  AttendSizes sizes;
  sizes.q_len = seq.q_len;
  sizes.k_len = seq.k_len;
  sizes.q_heads = q_heads();
  sizes.kv_heads = kv_heads();
  sizes.head_dim = head_dim();
  sizes.num_sets = sparse ? num_sets : 0;
  sizes.by_blocks = params->blocks.blocks != nullptr;
  sizes.paged = params->k.block_table != nullptr;
  return sizes;
}

AttendMemory place_attend(const AttendTask& task, const AttendPlan& plan, Scratch& scratch) {
  const int64_t dim = task.head_dim();
  AttendMemory m{};
  const int64_t flags = 1 + plan.units * plan.flag_stride;
  m.num_flags = flags + 3;
  m.flags = scratch.take<uint32_t>(m.num_flags);
  m.tickets = reinterpret_cast<int32_t*>(m.flags + flags);
  m.broken = m.flags + flags + 2;
  if (task.vets_lists()) {
    m.counts =
        scratch.take<int32_t>(int64_t{task.params->blocks.num_sets} * query_blocks(task.seq.q_len));
  }
  m.q_first = scratch.take<int32_t>(task.num_sets);
  m.q_lens = scratch.take<int32_t>(1);
  m.kv_lens = scratch.take<int32_t>(1);
  if (task.attends_left_out()) {
    m.left_out = scratch.take<int32_t>(int64_t{task.num_sets} * task.seq.q_len);
  }
  if (plan.engine == Engine::kOwn) return m;
  const bool cudnn = plan.engine != Engine::kSm90;
  const int64_t kv = int64_t{plan.group_units} * plan.capacity * dim;
  const int64_t rows = int64_t{plan.group_units} * plan.q_heads * plan.q_capacity;
  for (int32_t i = 0; i < plan.lanes; ++i) {
    Copies& c = m.lanes[i];
    if (plan.gather) c.k = scratch.take<uint16_t>(kv);
    c.v = scratch.take<uint16_t>(kv);
    if (!cudnn) continue;
    if (plan.gather) {
      if (!plan.q_in_out) c.q = scratch.take<uint16_t>(rows * dim);
      c.out = scratch.take<uint16_t>(rows * dim);
      if (task.params->lse.data != nullptr) c.lse = scratch.take<float>(rows);
    }
    c.cudnn = scratch.take<unsigned char>(static_cast<int64_t>(plan.cudnn_bytes));
  }
  return m;
}

AttendArgs attend_args(const AttendTask& task, const AttendMemory& memory) {
  const tsp_attend_params_t& p = *task.params;
  AttendArgs a{};
  a.q = q_rows(p.q, task.seq);
  a.k = k_rows(p.k, task.seq);
  a.v = k_rows(p.v, task.seq);
  a.out = q_rows(p.out, task.seq);
  a.lse = make_values(p.lse, task.seq.q_begin);
  a.sets = task.sets;
  a.blocks = make_key_blocks(p.blocks, task.seq, p.q.heads);
  if (memory.counts != nullptr) {
    a.blocks.counts = memory.counts;
    a.blocks.count_stride = query_blocks(task.seq.q_len);
  }
  a.q_first = task.sparse ? memory.q_first : nullptr;
  a.q_len = task.seq.q_len;
  a.k_len = task.seq.k_len;
  a.group = task.q_heads() / task.kv_heads();
  a.num_heads = task.q_heads();
  a.scale_log2 = p.scale * kLog2E;
  a.flags = memory.flags;
  return a;
}

CompressArgs compress_args(const AttendTask& task, const AttendPlan& plan,
                           const AttendMemory& memory, const Units& units) {
  CompressArgs a{};
  a.v = k_rows(task.params->v, task.seq);
  a.sets = task.sets;
  a.units = units;
  a.flags = memory.flags;
  a.flag_stride = plan.flag_stride;
  a.exponent_mask = task.params->q.dtype == TSP_BF16 ? 0x7f807f80u : 0x7c007c00u;
  a.q_pos = task.seq.q_pos();
  a.k_len = task.seq.k_len;
  a.capacity = task.seq.k_len;
  return a;
}

DecompressArgs decompress_args(const AttendTask& task) {
  const tsp_attend_params_t& p = *task.params;
  DecompressArgs a{};
  a.out = q_rows(p.out, task.seq);
  a.lse_out = make_values(p.lse, task.seq.q_begin);
  a.sets = task.sets;
  a.num_heads = task.q_heads();
  a.q_len = task.seq.q_len;
  a.k_len = task.seq.k_len;
  a.clear_dropped = p.dropped == TSP_DROPPED_ZERO;
  return a;
}

VetBlocksArgs vet_blocks_args(const AttendTask& task, const AttendMemory& memory) {
  const tsp_attend_params_t& p = *task.params;
  VetBlocksArgs a{};
  a.blocks = make_key_blocks(p.blocks, task.seq, p.q.heads);
  a.sets = task.sets;
  a.q_first = task.sparse ? memory.q_first : nullptr;
  a.num_sets = p.blocks.num_sets;
  a.q_len = task.seq.q_len;
  a.k_len = task.seq.k_len;
  a.counts = memory.counts;
  a.broken = memory.broken;
  return a;
}

Rows compact_rows(uint16_t* data, int32_t capacity, int32_t head_dim) {
  Rows rows;
  rows.data = data;
  rows.token_stride = head_dim;
  rows.head_stride = int64_t{capacity} * head_dim;
  return rows;
}

LeftOutArgs left_out_args(const AttendTask& task, const AttendMemory& memory) {
  const tsp_attend_params_t& p = *task.params;
  LeftOutArgs a{};
  a.q = q_rows(p.q, task.seq);
  a.k = k_rows(p.k, task.seq);
  a.v = k_rows(p.v, task.seq);
  a.out = q_rows(p.out, task.seq);
  a.lse = make_values(p.lse, task.seq.q_begin);
  a.sets = task.sets;
  a.q_first = memory.q_first;
  a.rows = memory.left_out;
  a.num_sets = task.num_sets;
  a.q_len = task.seq.q_len;
  a.k_len = task.seq.k_len;
  a.num_heads = task.q_heads();
  a.group = task.q_heads() / task.kv_heads();
  a.pack = left_out_pack(a.group, task.sets.heads_per_set);
  a.sink = std::min(p.sink, task.seq.k_len);
  a.band = std::min(p.band, task.seq.k_len);
  a.scale_log2 = p.scale * kLog2E;
  return a;
}

}  // namespace tsp::cuda
