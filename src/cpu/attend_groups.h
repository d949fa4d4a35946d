// SPDX-License-Identifier: MIT
// Which query heads share packed keys, and how large a buffer their keys need.
#pragma once

#include "core/layout.h"
#include "cpu/kernels.h"
#include "tokensparse/attend.h"

namespace tsp::cpu {

/// Query heads that read the same keys: one set of one KV head of one sequence.
struct Group {
  const int32_t* list;  // positions kept, ascending; null: all
  int32_t num_keys;
  int32_t first_query;  // first entry whose position is a query's
  int32_t seq;
  int32_t kv_head;
  int32_t first_head;
  int32_t num_heads;
  unsigned char* panels;  // packed K and V, once planned
  unsigned char* values;
  int64_t first_pack_item;
  int64_t first_tile_item;

  /// At least one: a head that kept no query row still has rows of zeros to write.
  int32_t num_tiles() const {
    const int32_t rows = num_keys - first_query;
    return rows <= kTileRows ? 1 : (rows + kTileRows - 1) / kTileRows;
  }
};

size_t max_groups(const tsp_attend_params_t& p);
/// Fills `groups`, returns how many there are.
int32_t list_groups(const tsp_attend_params_t& p, Group* groups);

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
