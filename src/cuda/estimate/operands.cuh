// SPDX-License-Identifier: MIT
// Where the rows and columns of a head's products lie. A row is `segments` rows of q end to end,
// and a column as many rows of k: xattention's antidiagonals are t = 0 .. s - 1 of q entry first +
// s - 1 - t with k entry j * s + t, a mean's two 16-bit parts are segments that share q.
#pragma once

#include "cuda/estimate/estimate.h"
#include "cuda/sets.cuh"

namespace tsp::cuda {

enum class Product : int32_t { kGroups, kBlockMeans, kLines };

template <Product kOf>
struct Operands {
  const EstimateArgs* args;
  BlockCut cut;
  const int32_t* list;
  int32_t head, kv_head;
  int32_t base;  // entry of row 0

  __device__ __forceinline__ Operands(const EstimateArgs& a, int head_index)
      : args(&a),
        cut(a.cuts[head_index]),
        list(list_of(a.sets, head_index / a.sets.heads_per_set)),
        head(head_index),
        kv_head(a.kv_head_of(head_index)),
        base(cut.first_query) {
    if (kOf == Product::kLines) {
      base = cut.count - a.line_rows(cut, a.kind == TSP_PATTERN_MINFERENCE);
    }
  }
  __device__ __forceinline__ int stride() const {
    return kOf == Product::kGroups ? args->stride : 1;
  }
  __device__ __forceinline__ int segments() const {
    return kOf == Product::kGroups ? args->stride : kOf == Product::kBlockMeans ? 2 : 1;
  }
  __device__ __forceinline__ int num_rows() const {
    return (cut.count - base + stride() - 1) / stride();
  }
  /// Columns that row i sees. kBlockMeans: that the last row of its query block sees.
  __device__ __forceinline__ int visible(int i) const {
    if (kOf == Product::kBlockMeans) return cut.visible(i / args->block, args->block);
    return (min(base + (i + 1) * stride(), cut.count) - 1) / stride() + 1;
  }
  /// Entry of row i in a segment; the rows of a mean share theirs.
  __device__ __forceinline__ int query_entry(int i, int segment) const {
    return base + i * stride() + (kOf == Product::kGroups ? stride() - 1 - segment : 0);
  }
  __device__ __forceinline__ int key_entry(int j, int segment) const {
    return j * stride() + segment;
  }
  /// A logit, to base 2, is a product times this.
  __device__ __forceinline__ float scale() const {
    return args->scale_log2 / static_cast<float>(stride());
  }
};

/// Where a thread's rows and columns of one segment lie, 32 apart from its first; null: not there.
template <Product kOf, int kRows, int kCols>
struct Sources {
  static constexpr int kApart = 32;
  const uint16_t* q[kRows];
  const uint16_t* k[kCols];

  /// Rows and columns beyond end_row and end_col are not there. Positions come first, all under way
  /// together.
  __device__ __forceinline__ void locate(const Operands<kOf>& in, int row, int end_row, int col,
                                         int end_col, int segment) {
    int q_at[kRows], k_at[kCols];
    find_rows(in, row, end_row, segment, q_at);
    if constexpr (kOf != Product::kBlockMeans) {
      find_columns(in, col, end_col, segment, k_at);
      rows_at(in.args->k, in.kv_head, k_at, k);
    } else {
      const int64_t first = int64_t{in.args->unit_of(in.head)} * in.args->key_blocks;
#pragma unroll
      for (int i = 0; i < kCols; ++i) {
        const int64_t part = (first + col + i * kApart) * 2 + segment;
        k[i] = col + i * kApart < end_col ? in.args->key_parts + part * in.args->head_dim : nullptr;
      }
    }
    place_rows(in, q_at);
  }
  /// Rows alone, and columns alone, of products that share the others.
  __device__ __forceinline__ void locate_rows(const Operands<kOf>& in, int row, int end_row) {
    int q_at[kRows];
    find_rows(in, row, end_row, 0, q_at);
    place_rows(in, q_at);
  }
  __device__ __forceinline__ void locate_columns(const Operands<kOf>& in, int col, int end_col) {
    int k_at[kCols];
    find_columns(in, col, end_col, 0, k_at);
    rows_at(in.args->k, in.kv_head, k_at, k);
  }

 private:
  static __device__ __forceinline__ void find_rows(const Operands<kOf>& in, int row, int end_row,
                                                   int segment, int (&at)[kRows]) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int entry = in.query_entry(row + i * kApart, segment);
      at[i] = row + i * kApart < end_row && entry < in.cut.count ? entry : -1;
    }
    if (in.list == nullptr) return;
#pragma unroll
    for (int i = 0; i < kRows; ++i) at[i] = at[i] < 0 ? -1 : in.list[at[i]];
  }
  static __device__ __forceinline__ void find_columns(const Operands<kOf>& in, int col, int end_col,
                                                      int segment, int (&at)[kCols]) {
#pragma unroll
    for (int i = 0; i < kCols; ++i) {
      const int entry = in.key_entry(col + i * kApart, segment);
      at[i] = col + i * kApart < end_col && entry < in.cut.count ? entry : -1;
    }
    if (in.list == nullptr) return;
#pragma unroll
    for (int i = 0; i < kCols; ++i) at[i] = at[i] < 0 ? -1 : in.list[at[i]];
  }
  __device__ __forceinline__ void place_rows(const Operands<kOf>& in, int (&at)[kRows]) {
    const int first = in.args->k_len - in.args->q_len;
#pragma unroll
    for (int i = 0; i < kRows; ++i) at[i] = at[i] < 0 ? -1 : at[i] - first;
    rows_at(in.args->q, in.head, at, q);
  }
  template <int kCount>
  static __device__ __forceinline__ void rows_at(const Rows& rows, int head,
                                                 const int (&positions)[kCount],
                                                 const uint16_t* (&to)[kCount]) {
    if (rows.table == nullptr) {
      const uint16_t* const data = rows.data + head * rows.head_stride;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        to[i] = positions[i] < 0 ? nullptr : data + positions[i] * rows.token_stride;
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      to[i] = positions[i] < 0 ? nullptr : rows.row(positions[i], head);
    }
  }
};

}  // namespace tsp::cuda
