// SPDX-License-Identifier: MIT
#include "cpu/attend_groups.h"

#include <algorithm>

#include "core/blocks.h"

namespace tsp::cpu {
namespace {

constexpr size_t kPackBytes = size_t{32} << 20;

int32_t ceil_to(int32_t n, int32_t to) { return (n + to - 1) / to * to; }

bool has_local_rows(const tsp_attend_params_t& p) {
  return p.selected.indices != nullptr && p.dropped == TSP_DROPPED_LOCAL;
}

/// The keys of a sequence's left-out rows: sinks, and everything from the first row's band on.
void place_local_keys(const tsp_attend_params_t& p, const Kernels& k, const Seq& seq,
                      Group& group) {
  const int32_t band_begin = std::max(0, seq.q_pos() - p.band + 1) / k.panel_keys * k.panel_keys;
  const int32_t sinks = ceil_to(std::min(p.sink, band_begin), k.panel_keys);
  group.sinks = sinks < band_begin ? sinks : 0;
  group.gap = sinks < band_begin ? band_begin - sinks : 0;
  group.num_keys = seq.k_len - group.gap;
}

/// Whether some query row of the sequence is in no set of those heads.
bool leaves_rows_out(const tsp_attend_params_t& p, const Seq& seq, int32_t first_set,
                     int32_t num_sets) {
  for (int32_t set = first_set; set < first_set + num_sets; ++set) {
    const int32_t* const list = set_indices(p.selected, seq.index, set);
    const int32_t* const end = list + p.selected.kept[seq.index];
    if (end - std::lower_bound(list, end, seq.q_pos()) < seq.q_len) return true;
  }
  return false;
}

/// Whether a head of the group reads less than every key.
bool leaves_blocks_out(const tsp_attend_params_t& p, const Group& group) {
  if (p.blocks.blocks == nullptr) return false;
  const auto heads_per_set = static_cast<int32_t>(p.q.heads / p.blocks.num_sets);
  const int32_t last = (group.first_head + group.num_heads - 1) / heads_per_set;
  for (int32_t set = group.first_head / heads_per_set; set <= last; ++set) {
    if (!lists_everything(p.blocks, group, set)) return true;
  }
  return false;
}

}  // namespace

size_t max_groups(const tsp_attend_params_t& p) {
  const bool per_head = p.selected.indices != nullptr && p.selected.num_sets == p.q.heads;
  const int64_t local = has_local_rows(p) ? p.k.heads : 0;
  return static_cast<size_t>(p.batch.num_seqs) *
         static_cast<size_t>((per_head ? p.q.heads : p.k.heads) + local);
}

int32_t list_groups(const tsp_attend_params_t& p, const Kernels& k, Group* groups) {
  const auto heads = static_cast<int32_t>(p.q.heads);
  const auto kv_heads = static_cast<int32_t>(p.k.heads);
  const auto heads_per_kv = heads / kv_heads;
  const int32_t heads_per_set = p.selected.indices == nullptr ? heads : heads / p.selected.num_sets;
  int32_t count = 0;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    if (seq.q_len == 0) continue;
    const bool dense = p.selected.indices == nullptr || p.selected.kept[b] == seq.k_len;
    const int32_t num_groups = !dense && heads_per_set == 1 ? heads : kv_heads;
    for (int32_t g = 0; g < num_groups; ++g) {
      Group& group = groups[count++];
      group = Group{};
      group.seq = b;
      group.num_heads = heads / num_groups;
      group.heads_per_set = 1;
      group.first_head = g * group.num_heads;
      group.kv_head = group.first_head / heads_per_kv;
      group.num_keys = seq.k_len;
      group.first_query = seq.q_pos();
      if (!dense) {
        group.list = set_indices(p.selected, b, group.first_head / heads_per_set);
        group.num_keys = p.selected.kept[b];
        group.first_query = static_cast<int32_t>(
            std::lower_bound(group.list, group.list + group.num_keys, seq.q_pos()) - group.list);
      }
      group.by_blocks = leaves_blocks_out(p, group);
      if (group.by_blocks) {
        group.num_tiles = num_query_blocks(group.num_keys - group.first_query, p.blocks.block);
        continue;
      }
      // At least one: a head that kept no query row still has rows of zeros to write.
      group.num_tiles =
          std::max(1, ceil_to(group.num_keys - group.first_query, kTileRows) / kTileRows);
    }
  }
  if (!has_local_rows(p)) return count;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    if (p.selected.kept[b] == seq.k_len) continue;
    for (int32_t kv_head = 0; kv_head < kv_heads; ++kv_head) {
      const int32_t first_head = kv_head * heads_per_kv;
      const int32_t shared = std::min(heads_per_set, heads_per_kv);
      if (!leaves_rows_out(p, seq, first_head / heads_per_set, heads_per_kv / shared)) continue;
      Group& group = groups[count++];
      group = Group{};
      group.seq = b;
      group.kv_head = kv_head;
      group.first_head = first_head;
      group.num_heads = heads_per_kv;
      group.left_out = true;
      group.heads_per_set = shared;
      group.num_tiles = ceil_to(seq.q_len, kLeftOutPositions) / kLeftOutPositions;
      place_local_keys(p, k, seq, group);
    }
  }
  return count;
}

PackBuffer pack_buffer(const tsp_attend_params_t& p, const Kernels& k) {
  const auto dim = static_cast<int32_t>(p.q.dim);
  const size_t panel_bytes =
      k.k_panel_bytes(dim) + static_cast<size_t>(k.panel_keys) * k.v_row_bytes(dim);
  const auto bytes_of = [&](int32_t keys) {
    return static_cast<size_t>((keys + k.panel_keys - 1) / k.panel_keys) * panel_bytes;
  };
  const bool per_head = p.selected.indices != nullptr && p.selected.num_sets == p.q.heads;
  const auto num_groups = static_cast<size_t>(per_head ? p.q.heads : p.k.heads);
  size_t total = 0;
  size_t largest = 0;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    largest = std::max(largest, bytes_of(seq.k_len));
    total += num_groups * bytes_of(seq.k_len);
    if (!has_local_rows(p)) continue;
    Group local{};
    place_local_keys(p, k, seq, local);
    total += static_cast<size_t>(p.k.heads) * bytes_of(local.num_keys);
  }
  if (total <= kPackBytes) return {total, false};
  if (2 * largest <= kPackBytes) return {kPackBytes, true};
  return {std::max(largest, kPackBytes), false};
}

}  // namespace tsp::cpu
