// SPDX-License-Identifier: MIT
#include "cuda/attend/attend_plan.h"

#include <algorithm>

#include "cuda/attend/attend_config.h"

namespace tsp::cuda {
namespace {

constexpr int64_t kElementBytes = 2;  // f16 and bf16

/// Bytes that copies may take.
int64_t budget(const AttendSizes& sizes) {
  const int64_t q_bytes = int64_t{sizes.q_len} * sizes.q_heads * sizes.head_dim * kElementBytes;
  const double share = sizes.k_len > kLongKeys ? kGroupShareLong : kGroupShare;
  return static_cast<int64_t>(share * static_cast<double>(q_bytes));
}

/// How many units at once, and in how many lanes.
void plan_cudnn_groups(const AttendSizes& sizes, AttendPlan& plan) {
  plan.capacity = length_bucket(sizes.k_len);
  plan.q_capacity = length_bucket(sizes.q_len);
  // Plans assume q_capacity rows: `out` may hold Q only where it has them.
  plan.q_in_out = plan.q_capacity == sizes.q_len;
  const int64_t row = sizes.head_dim * kElementBytes;
  const int64_t kv_unit = int64_t{plan.capacity} * row * 2;
  const int64_t q_unit = int64_t{plan.q_capacity} * row * plan.q_heads;
  const int64_t unit = kv_unit + q_unit * (plan.q_in_out ? 1 : 2);
  plan.lanes = plan.units > 1 ? kMaxLanes : 1;
  plan.group_units = units_per_group(plan.units, unit * plan.lanes, budget(sizes));
  if (plan.group_units >= plan.units) plan.lanes = 1;
}

}  // namespace

int32_t units_per_group(int32_t units, int64_t unit_bytes, int64_t budget_bytes) {
  const int64_t fit =
      std::clamp<int64_t>(budget_bytes / std::max<int64_t>(unit_bytes, 1), 1, units);
  const int64_t groups = (units + fit - 1) / fit;
  return static_cast<int32_t>((units + groups - 1) / groups);
}

AttendPlan plan_attend(const AttendSizes& sizes, const Engines& engines) {
  AttendPlan plan;
  const bool sparse = sizes.num_sets > 0;
  plan.units = std::max(sizes.num_sets, sizes.kv_heads);
  plan.per_kv = plan.units / sizes.kv_heads;
  plan.q_heads = sizes.q_heads / plan.units;
  plan.flag_stride = (int64_t{sizes.k_len} + kFlagRows - 1) / kFlagRows;
  const bool cudnn = engines.cudnn && !sizes.by_blocks && sizes.k_len >= kCudnnMinKeys;
  if (!cudnn && !engines.sm90) return plan;
  plan.gather = sparse || sizes.paged;
  plan.capacity = sizes.k_len;
  plan.group_units = plan.units;
  plan.engine = !cudnn ? Engine::kSm90 : plan.gather ? Engine::kCudnnGroups : Engine::kCudnnDirect;
  if (plan.engine == Engine::kCudnnGroups) plan_cudnn_groups(sizes, plan);
  if (plan.engine == Engine::kSm90 && plan.gather) {
    const int64_t unit = int64_t{plan.capacity} * sizes.head_dim * kElementBytes * 2;
    plan.group_units = units_per_group(plan.units, unit, budget(sizes));
  }
  return plan;
}

}  // namespace tsp::cuda
