// SPDX-License-Identifier: MIT
// What a kernel sees of a tensor: the rows of one sequence, 16-bit elements, channels side by side.
// Plain data for host and device; the host part turns a tsp_tensor_t into it.
#pragma once

#include <cstdint>

#include "core/layout.h"

#ifdef __CUDACC__
#define TSP_HOST_DEVICE __host__ __device__
#else
#define TSP_HOST_DEVICE
#endif

namespace tsp::cuda {

/// Rows [token, head] of one sequence; strides in elements of two bytes.
struct Rows {
  uint16_t* data = nullptr;        // row 0, head 0 of the sequence (pool start when paged)
  const int32_t* table = nullptr;  // physical blocks of the sequence; null = not paged
  int64_t token_stride = 0;
  int64_t head_stride = 0;
  int64_t block_stride = 0;
  int32_t block_size = 1;

  TSP_HOST_DEVICE uint16_t* row(int32_t token, int32_t head) const {
    int64_t offset = head * head_stride;
    if (table != nullptr) {
      const int32_t block = token / block_size;
      offset += table[block] * block_stride + (token - block * block_size) * token_stride;
    } else {
      offset += token * token_stride;
    }
    return data + offset;
  }
};

/// An f32 value per [token, head], for scores and log-sum-exp.
struct Values {
  float* data = nullptr;  // null = not wanted
  int64_t token_stride = 0;
  int64_t head_stride = 0;

  TSP_HOST_DEVICE float& at(int32_t token, int32_t head) const {
    return data[token * token_stride + head * head_stride];
  }
};

/// The sets of one sequence.
struct Sets {
  int32_t* indices = nullptr;  // [S, set_stride] ascending positions; null = every token
  int32_t* kept = nullptr;     // [1] tokens in each set; null = every token
  int64_t set_stride = 0;
  int32_t heads_per_set = 1;  // query head h uses set h / heads_per_set

  TSP_HOST_DEVICE int32_t* of_set(int32_t set) const { return indices + set * set_stride; }
};

/// Which blocks of kKeyBlock entries a tile of as many query rows looks at: those that hold its own
/// entries among them, none beyond its last. Tiles begin at the list's first entry that is a query.
constexpr int32_t kKeyBlock = 128;
struct KeyBlocks {
  const int32_t* blocks = nullptr;  // [sets, tiles, tile_stride] ascending; null = every block
  const int32_t* counts = nullptr;  // [sets, tiles] blocks of a tile
  int64_t set_stride = 0;           // of blocks
  int64_t tile_stride = 0;
  int64_t count_stride = 0;   // of counts, between sets
  int32_t heads_per_set = 1;  // query head h uses set h / heads_per_set

  TSP_HOST_DEVICE const int32_t* of_tile(int32_t head, int32_t tile) const {
    return blocks + head / heads_per_set * set_stride + tile * tile_stride;
  }
  TSP_HOST_DEVICE int32_t count(int32_t head, int32_t tile) const {
    return counts[head / heads_per_set * count_stride + tile];
  }
};

inline Rows make_rows(const tsp_tensor_t& view, const Seq& seq, int32_t begin) {
  Rows rows;
  rows.data = static_cast<uint16_t*>(view.data);
  rows.token_stride = view.token_stride;
  rows.head_stride = view.head_stride;
  if (view.block_table != nullptr) {
    rows.table = view.block_table + seq.index * view.table_stride;
    rows.block_stride = view.block_stride;
    rows.block_size = view.block_size;
  } else if (rows.data != nullptr) {
    rows.data += begin * view.token_stride;
  }
  return rows;
}
inline Rows q_rows(const tsp_tensor_t& view, const Seq& seq) {
  return make_rows(view, seq, seq.q_begin);
}
inline Rows k_rows(const tsp_tensor_t& view, const Seq& seq) {
  return make_rows(view, seq, seq.k_begin);
}

/// `begin`: first row of the sequence in the view.
inline Values make_values(const tsp_tensor_t& view, int64_t begin) {
  Values values{static_cast<float*>(view.data), view.token_stride, view.head_stride};
  if (values.data != nullptr) values.data += begin * view.token_stride;
  return values;
}

inline Sets make_sets(const tsp_index_sets_t& sets, const Seq& seq, int64_t num_q_heads) {
  Sets out;
  if (sets.indices != nullptr) out.indices = sets.indices + seq.index * sets.seq_stride;
  if (sets.kept != nullptr) out.kept = sets.kept + seq.index;
  out.set_stride = sets.set_stride;
  if (sets.num_sets > 0) out.heads_per_set = static_cast<int32_t>(num_q_heads / sets.num_sets);
  return out;
}

inline KeyBlocks make_key_blocks(const tsp_block_sets_t& sets, const Seq& seq,
                                 int64_t num_q_heads) {
  KeyBlocks blocks;
  if (sets.blocks == nullptr) return blocks;
  blocks.blocks = sets.blocks + seq.index * sets.seq_stride;
  blocks.counts = sets.counts + seq.index * sets.count_seq_stride;
  blocks.set_stride = sets.set_stride;
  blocks.tile_stride = sets.row_stride;
  blocks.count_stride = sets.count_set_stride;
  blocks.heads_per_set = static_cast<int32_t>(num_q_heads / sets.num_sets);
  return blocks;
}

}  // namespace tsp::cuda
