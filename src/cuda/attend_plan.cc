// SPDX-License-Identifier: MIT
// How attend cuts a sequence: pure decisions, no launch.
#include <algorithm>

#include "cuda/attend_plan.h"

namespace tsp::cuda {

AttendShape group_shape(const AttendLayout& layout, const tsp_attend_params_t& p, int32_t count) {
  AttendShape shape;
  const int64_t dim = p.q.dim;
  shape.dtype = p.q.dtype;
  shape.head_dim = static_cast<int32_t>(dim);
  shape.scale = p.scale;
  shape.with_lse = p.lse.data != nullptr;
  shape.q_heads = count * layout.q_heads;
  shape.kv_heads = count;
  shape.q_len = layout.q_capacity;
  shape.kv_len = layout.capacity;
  const int64_t kv_head = layout.capacity * dim, q_head = layout.q_capacity * dim;
  const auto strides = [&](int64_t head, int64_t token, int32_t heads) {
    return AttendShape::Strides{heads * head, head, token};
  };
  shape.k = shape.v = strides(kv_head, dim, shape.kv_heads);
  shape.out = strides(q_head, dim, shape.q_heads);
  shape.q =
      layout.q_in_out ? strides(p.out.head_stride, p.out.token_stride, shape.q_heads) : shape.out;
  if (shape.with_lse) shape.lse = strides(layout.q_capacity, 1, shape.q_heads);
  return shape;
}

AttendShape direct_shape(const AttendLayout& layout, const tsp_attend_params_t& p, const Seq& seq) {
  AttendShape shape;
  shape.dtype = p.q.dtype;
  shape.head_dim = static_cast<int32_t>(p.q.dim);
  shape.q_heads = static_cast<int32_t>(p.q.heads);
  shape.kv_heads = static_cast<int32_t>(p.k.heads);
  shape.q_len = seq.q_len;
  shape.kv_len = seq.k_len;
  shape.with_lse = p.lse.data != nullptr;
  shape.padded = layout.padded;
  shape.scale = p.scale;
  const auto strides = [](const tsp_tensor_t& t, int64_t tokens) {
    return AttendShape::Strides{std::max(tokens * t.token_stride, t.heads * t.head_stride),
                                t.head_stride, t.token_stride};
  };
  shape.q = strides(p.q, seq.q_len);
  shape.k = strides(p.k, seq.k_len);
  const int64_t v_head = layout.capacity * p.v.dim;
  shape.v = {p.v.heads * v_head, v_head, p.v.dim};
  shape.out = strides(p.out, seq.q_len);
  if (shape.with_lse) shape.lse = strides(p.lse, seq.q_len);
  return shape;
}

namespace {

/// Plans for every size of group; false where cuDNN refuses one.
bool prepare_groups(CudnnAttend& cudnn, AttendLayout& layout, const tsp_attend_params_t& p) {
  for (int32_t begin = 0; begin < layout.units; begin += layout.group_units) {
    const int32_t count = std::min(layout.group_units, layout.units - begin);
    size_t bytes = 0;
    if (!cudnn.prepare(group_shape(layout, p, count), &bytes)) return false;
    layout.cudnn_bytes = std::max(layout.cudnn_bytes, bytes);
  }
  return true;
}

}  // namespace

AttendLayout plan_attend(State& state, const tsp_attend_params_t& p, const Seq& seq, bool sparse,
                         int32_t num_sets) {
  AttendLayout layout;
  const auto q_heads = static_cast<int32_t>(p.q.heads);
  const auto kv_heads = static_cast<int32_t>(p.k.heads);
  layout.units = sparse ? std::max(num_sets, kv_heads) : kv_heads;
  layout.per_kv = layout.units / kv_heads;
  layout.q_heads = q_heads / layout.units;
  layout.flag_stride = (int64_t{seq.k_len} + kFlagRows - 1) / kFlagRows;
  if (state.cudnn == nullptr || seq.k_len < kCudnnMinKeys) return layout;

  layout.gather = sparse || p.k.block_table != nullptr;
  if (!layout.gather) {
    layout.capacity = seq.k_len;
    for (const bool padded : {false, true}) {
      layout.padded = padded;
      layout.cudnn = state.cudnn->prepare(direct_shape(layout, p, seq), &layout.cudnn_bytes);
      if (layout.cudnn) break;
    }
    return layout;
  }
  layout.capacity = length_bucket(seq.k_len);
  layout.q_capacity = length_bucket(seq.q_len);
  // Plans assume q_capacity rows: `out` may hold Q only where it has them.
  layout.q_in_out = layout.q_capacity == seq.q_len;
  const int64_t q_bytes = int64_t{seq.q_len} * q_heads * p.q.dim * 2;
  const int64_t kv_unit = int64_t{layout.capacity} * p.q.dim * 2 * 2;
  const int64_t q_unit = int64_t{layout.q_capacity} * p.q.dim * 2 * layout.q_heads;
  const double share = seq.k_len > kLongKeys ? kGroupShareLong : kGroupShare;
  const int64_t unit = kv_unit + q_unit * (layout.q_in_out ? 1 : 2);
  const auto budget = static_cast<int64_t>(share * static_cast<double>(q_bytes));
  layout.lanes = layout.units > 1 ? kMaxLanes : 1;
  layout.group_units = units_per_group(layout.units, unit * layout.lanes, budget);
  if (layout.group_units >= layout.units) layout.lanes = 1;
  layout.cudnn = prepare_groups(*state.cudnn, layout, p);
  return layout;
}

}  // namespace tsp::cuda
