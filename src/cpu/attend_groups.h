// SPDX-License-Identifier: MIT
// Which query heads share packed keys, and how large a buffer their keys need.
#pragma once

#include "core/layout.h"
#include "cpu/kernels.h"
#include "tokensparse/attend.h"

namespace tsp::cpu {

constexpr int32_t kLeftOutPositions = 64;  // query positions of one item of left-out rows

/// Query heads that read the same packed keys. Rows that are kept: one set of one KV head of one
/// sequence. Rows that were left out: all heads of one KV head, whose packed keys are the first
/// `sinks` tokens (whole panels) and then those from a later one on.
struct Group {
  const int32_t*
      list;          // positions of the packed keys, ascending; null: index + gap from `sinks` on
  int32_t num_keys;  // packed
  int32_t first_query;  // first entry whose position is a query's
  int32_t sinks;
  int32_t gap;  // tokens between the sinks and the keys behind them
  int32_t seq;
  int32_t kv_head;
  int32_t first_head;
  int32_t num_heads;
  bool left_out;
  int32_t heads_per_set;  // of left-out rows
  int32_t num_tiles;      // of each head, or of each set where rows were left out
  bool by_blocks;         // then a tile is a query block; false where the blocks list everything
  unsigned char* panels;  // packed K and V, once planned
  unsigned char* values;
  int64_t first_pack_item;
  int64_t first_tile_item;

  int32_t num_tile_items() const { return num_tiles * (num_heads / heads_per_set); }
  int32_t position(int32_t key) const {
    if (list != nullptr) return list[key];
    return key < sinks ? key : key + gap;
  }
};

/// Whether the query blocks of the group list every key that they can see.
bool lists_everything(const tsp_block_sets_t& sets, const Group& group, int32_t set);

size_t max_groups(const tsp_attend_params_t& p);
/// Fills `groups`, returns how many there are.
int32_t list_groups(const tsp_attend_params_t& p, const Kernels& k, Group* groups);

/// Packed keys wait here. Everything at once where that takes no more than 32 MiB; else two halves
/// of 16 MiB, so that one is filled while the other is used; a single group (a KV head, or a set of
/// one) that is larger than a half gets one buffer of its own size. So the bound is the larger of
/// 32 MiB and one KV head's K and V in the arithmetic's dtype.
struct PackBuffer {
  size_t bytes;
  bool double_buffered;
};
PackBuffer pack_buffer(const tsp_attend_params_t& p, const Kernels& k);

}  // namespace tsp::cpu
