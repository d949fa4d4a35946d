// SPDX-License-Identifier: MIT
#include "cpu/attend_groups.h"

#include <algorithm>

namespace tsp::cpu {
namespace {

constexpr size_t kPackBytes = size_t{32} << 20;

}  // namespace

size_t max_groups(const tsp_attend_params_t& p) {
  const bool per_head = p.selected.indices != nullptr && p.selected.num_sets == p.q.heads;
  return static_cast<size_t>(p.batch.num_seqs) *
         static_cast<size_t>(per_head ? p.q.heads : p.k.heads);
}

int32_t list_groups(const tsp_attend_params_t& p, Group* groups) {
  const auto kv_heads = static_cast<int32_t>(p.k.heads);
  const auto heads_per_kv = static_cast<int32_t>(p.q.heads) / kv_heads;
  int32_t count = 0;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    if (seq.q_len == 0) continue;
    const bool dense = p.selected.indices == nullptr || p.selected.kept[b] == seq.k_len;
    const bool per_head = !dense && p.selected.num_sets == p.q.heads;
    const int32_t num_groups = per_head ? static_cast<int32_t>(p.q.heads) : kv_heads;
    for (int32_t g = 0; g < num_groups; ++g) {
      Group& group = groups[count++];
      group = Group{};
      group.seq = b;
      group.num_heads = per_head ? 1 : heads_per_kv;
      group.first_head = g * group.num_heads;
      group.kv_head = group.first_head / heads_per_kv;
      if (dense) {
        group.num_keys = seq.k_len;
        group.first_query = seq.q_pos();
        continue;
      }
      const auto heads_per_set = static_cast<int32_t>(p.q.heads) / p.selected.num_sets;
      group.list = set_indices(p.selected, b, group.first_head / heads_per_set);
      group.num_keys = p.selected.kept[b];
      group.first_query = static_cast<int32_t>(
          std::lower_bound(group.list, group.list + group.num_keys, seq.q_pos()) - group.list);
    }
  }
  return count;
}

PackBuffer pack_buffer(const tsp_attend_params_t& p, const Kernels& k) {
  const auto dim = static_cast<int32_t>(p.q.dim);
  const size_t panel_bytes =
      k.k_panel_bytes(dim) + static_cast<size_t>(k.panel_keys) * k.v_row_bytes(dim);
  size_t total = 0;
  size_t largest = 0;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    const size_t group =
        static_cast<size_t>((seq.k_len + k.panel_keys - 1) / k.panel_keys) * panel_bytes;
    largest = std::max(largest, group);
    total += group * (max_groups(p) / static_cast<size_t>(p.batch.num_seqs));
  }
  if (total <= kPackBytes) return {total, false};
  if (2 * largest <= kPackBytes) return {kPackBytes, true};
  return {std::max(largest, kPackBytes), false};
}

}  // namespace tsp::cpu
