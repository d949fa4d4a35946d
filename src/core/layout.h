// SPDX-License-Identifier: MIT
// Where a row lies: sequences of a batch, rows of a view, heads and their sets. Everything here
// expects parameters that dispatch has validated and normalised (batch.num_seqs >= 1).
#pragma once

#include <algorithm>
#include <cstdint>

#include "tokensparse/types.h"

namespace tsp {

/// One sequence of a batch.
struct Seq {
  int32_t index;                                   // b
  int32_t q_begin;                                 // first row in q and out
  int32_t q_len;                                   // Tq
  int32_t k_begin;                                 // first row in k and v (not paged)
  int32_t k_len;                                   // Tk
  int32_t q_pos() const { return k_len - q_len; }  // position of the first query
  int32_t window(int32_t wanted) const { return std::min(wanted, q_len); }
  int32_t prefix_len(int32_t wanted) const { return k_len - window(wanted); }
};

inline Seq seq_at(const tsp_batch_t& batch, int32_t b) {
  return {b, batch.q_offsets[b], batch.q_offsets[b + 1] - batch.q_offsets[b], batch.k_offsets[b],
          batch.k_offsets[b + 1] - batch.k_offsets[b]};
}

/// Element offset of (token of the sequence, head, channel 0). `begin` is the sequence's first row.
inline int64_t row_offset(const tsp_tensor_t& view, const Seq& seq, int32_t begin, int32_t token,
                          int32_t head) {
  if (view.block_table != nullptr) {
    const int64_t block = view.block_table[seq.index * view.table_stride + token / view.block_size];
    return block * view.block_stride + (token % view.block_size) * view.token_stride +
           head * view.head_stride;
  }
  return (static_cast<int64_t>(begin) + token) * view.token_stride + head * view.head_stride;
}
inline int64_t k_row_offset(const tsp_tensor_t& view, const Seq& seq, int32_t token, int32_t head) {
  return row_offset(view, seq, seq.k_begin, token, head);
}
inline int64_t q_row_offset(const tsp_tensor_t& view, const Seq& seq, int32_t token, int32_t head) {
  return row_offset(view, seq, seq.q_begin, token, head);
}

/// First column of sequence b in a score matrix: the prefix lengths before it.
inline int64_t score_offset(const tsp_batch_t& batch, int32_t window, int32_t b) {
  int64_t offset = 0;
  for (int32_t i = 0; i < b; ++i) offset += seq_at(batch, i).prefix_len(window);
  return offset;
}

/// Columns of a score matrix: the prefix lengths of all sequences.
inline int64_t total_prefix(const tsp_batch_t& batch, int32_t window) {
  return score_offset(batch, window, batch.num_seqs);
}
/// Longest Tq, and Tk, of the batch.
inline int32_t longest_q(const tsp_batch_t& batch) {
  int32_t longest = 0;
  for (int32_t b = 0; b < batch.num_seqs; ++b) longest = std::max(longest, seq_at(batch, b).q_len);
  return longest;
}
inline int32_t longest_k(const tsp_batch_t& batch) {
  int32_t longest = 0;
  for (int32_t b = 0; b < batch.num_seqs; ++b) {
    longest = std::max(longest, seq_at(batch, b).k_len);
  }
  return longest;
}

inline const int32_t* set_indices(const tsp_index_sets_t& sets, int32_t b, int32_t set) {
  return sets.indices + b * sets.seq_stride + set * sets.set_stride;
}
inline int32_t* mutable_set_indices(const tsp_index_sets_t& sets, int32_t b, int32_t set) {
  return sets.indices + b * sets.seq_stride + set * sets.set_stride;
}

inline int32_t num_sets_for(int32_t share, int64_t num_q_heads, int64_t num_kv_heads) {
  if (share == TSP_SHARE_HEAD) return static_cast<int32_t>(num_q_heads);
  return share == TSP_SHARE_KV_GROUP ? static_cast<int32_t>(num_kv_heads) : 1;
}

}  // namespace tsp
