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
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int entry = in.query_entry(row + i * kApart, segment);
      q_at[i] = row + i * kApart < end_row && entry < in.cut.count ? entry : -1;
    }
    if (in.list != nullptr) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) q_at[i] = q_at[i] < 0 ? -1 : in.list[q_at[i]];
    }
    if constexpr (kOf != Product::kBlockMeans) {
#pragma unroll
      for (int i = 0; i < kCols; ++i) {
        const int entry = in.key_entry(col + i * kApart, segment);
        k_at[i] = col + i * kApart < end_col && entry < in.cut.count ? entry : -1;
      }
      if (in.list != nullptr) {
#pragma unroll
        for (int i = 0; i < kCols; ++i) k_at[i] = k_at[i] < 0 ? -1 : in.list[k_at[i]];
      }
      rows_at(in.args->k, in.kv_head, k_at, 0, k);
    } else {
      const int64_t first = int64_t{in.args->unit_of(in.head)} * in.args->key_blocks;
#pragma unroll
      for (int i = 0; i < kCols; ++i) {
        const int64_t part = (first + col + i * kApart) * 2 + segment;
        k[i] = col + i * kApart < end_col ? in.args->key_parts + part * in.args->head_dim : nullptr;
      }
    }
    rows_at(in.args->q, in.head, q_at, in.args->k_len - in.args->q_len, q);
  }

 private:
  template <int kCount>
  static __device__ __forceinline__ void rows_at(const Rows& rows, int head,
                                                 const int (&positions)[kCount], int first,
                                                 const uint16_t* (&to)[kCount]) {
    if (rows.table == nullptr) {
      const uint16_t* const data = rows.data + head * rows.head_stride;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        to[i] = positions[i] < 0 ? nullptr : data + (positions[i] - first) * rows.token_stride;
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      to[i] = positions[i] < 0 ? nullptr : rows.row(positions[i] - first, head);
    }
  }
};

}  // namespace tsp::cuda
