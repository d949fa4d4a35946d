// SPDX-License-Identifier: MIT
// Softmax rows for the estimates of block patterns. A row may be several rows of q side by side
// (antidiagonals: `stride` of them), and so are its keys: their panels follow each other.
#pragma once

#include "cpu/softmax-inl.h"

namespace tsp::cpu {
namespace {

template <typename Arith>
struct EstimateScratch {
  int32_t q_stride;  // units
  float* q;          // [kEstimateRows, q_stride] units
  float* scores;     // [kEstimateRows, kScoreStride]
  size_t bytes;

  EstimateScratch(void* base, int32_t dim, int32_t segments)
      // A row's last vector may reach beyond it.
      : q_stride(round_up(units_of<Arith>(dim) * segments, kLanes) + kLanes),
        q(static_cast<float*>(base)),
        scores(q + int64_t{kEstimateRows} * round_up(q_stride, 16)),
        bytes(static_cast<size_t>(kEstimateRows) *
              static_cast<size_t>(round_up(q_stride, 16) + kScoreStride) * sizeof(float)) {}
};

template <typename Arith>
size_t estimate_scratch_bytes(int32_t dim, int32_t segments) {
  alignas(64) static float nothing[16];
  return EstimateScratch<Arith>(nothing, dim, segments).bytes;
}

template <typename Arith>
void load_segments(const EstimateTile& tile, const EstimateScratch<Arith>& s) {
  static_assert(kEstimateRows % Arith::kRows == 0);
  const int32_t units = units_of<Arith>(tile.q.dim);
  with_dtype(tile.q.dtype, [&]<int kDtype>() {
    for (int32_t r = 0; r < round_up(tile.num_rows, Arith::kRows); ++r) {
      float* const row = s.q + int64_t{r} * s.q_stride;
      for (int32_t t = 0; t < tile.num_segments; ++t) {
        const int64_t offset =
            r < tile.num_rows ? tile.q_offset[t * kEstimateRows + r] : int64_t{-1};
        for (int32_t u = 0; u < units; u += kLanes) {
          store(row + t * units + u,
                offset < 0 ? zero() : load_units<Arith, kDtype>(tile.q, offset, u));
        }
      }
    }
  });
}

/// Scores of a row's first `count` keys to weights; all NaN where a score is not finite.
TSP_INLINE void softmax_row(float* row, int32_t count, float scale, float* divisor_top,
                            float* divisor_sum) {
  const Span span = {0, count};
  const int32_t last = (count - 1) / kLanes * kLanes;
  mask_span(row, span);
  Vec top = load(row + last);
  // Of the last vector's lanes only those of the row: the others are minus infinity.
  Vec check = fma(keep_lanes(top, 0, count - last, 0.0f), zero(), zero());
  for (int32_t j = 0; j < last; j += kLanes) {
    const Vec score = load(row + j);
    check = fma(score, zero(), check);
    top = vmax(top, score);
  }
  *divisor_top = reduce_max(top) * scale;
  const Vec shift = set1(-*divisor_top);
  const Vec scales = set1(scale);
  Vec sum = zero();
  for (int32_t j = 0; j <= last; j += kLanes) {
    const Vec w = exp2(fma(load(row + j), scales, shift));
    sum = add(sum, w);
    store(row + j, w);
  }
  const bool finite = reduce_add(check) == 0.0f;
  *divisor_sum = reduce_add(sum);
  const Vec factor = set1(finite ? 1.0f / *divisor_sum : __builtin_nanf(""));
  for (int32_t j = 0; j <= last; j += kLanes) store(row + j, fma(load(row + j), factor, zero()));
}

template <typename Arith>
void softmax_rows(EstimateTile& tile) {
  const EstimateScratch<Arith> s(tile.scratch, tile.q.dim, tile.num_segments);
  load_segments<Arith>(tile, s);
  const int32_t depth = units_of<Arith>(tile.q.dim) * tile.num_segments;
  const auto* const panels = static_cast<const typename Arith::Unit*>(tile.k_panels);
  const int32_t num_keys = tile.hi[tile.num_rows - 1];
  Arith::begin();
  for (int32_t n0 = 0; n0 < num_keys; n0 += kBlockKeys) {
    const int32_t count = min32(kBlockKeys, num_keys - n0);
    multiply_keys<Arith>(s.q, s.q_stride, tile.num_rows, depth, nullptr, tile.hi, n0, count,
                         panels + int64_t{n0} * depth, s.scores);
    for (int32_t r = 0; r < tile.num_rows; ++r) {
      const int32_t seen = min32(tile.hi[r] - n0, count);
      for (int32_t j = 0; j < seen; j += kLanes) {
        store(tile.weights + r * tile.weight_stride + n0 + j,
              load(s.scores + r * kScoreStride + j));
      }
    }
  }
  Arith::end();
  for (int32_t r = 0; r < tile.num_rows; ++r) {
    softmax_row(tile.weights + r * tile.weight_stride, tile.hi[r], tile.scale_log2, &tile.tops[r],
                &tile.sums[r]);
  }
}

void add_row(const float* row, int32_t count, float* sum) {
  int32_t j = 0;
  for (; j + kLanes <= count; j += kLanes) store(sum + j, add(load(sum + j), load(row + j)));
  for (; j < count; ++j) sum[j] += row[j];
}

/// Channels d .. of the rows, kVecs vectors wide, the last of them cut off at the row's end.
template <int kDtype, int kVecs>
TSP_INLINE void sum_channels(const Rows& rows, const int64_t* offset, int32_t count, int32_t d,
                             float* sum) {
  alignas(64) float sums[kVecs * kLanes] = {};
  const auto bytes = sizeof(float) * static_cast<size_t>(min32(kVecs * kLanes, rows.dim - d));
  __builtin_memcpy(sums, sum + d, bytes);
  Vec total[kVecs];
#pragma GCC unroll 8
  for (int v = 0; v < kVecs; ++v) total[v] = load(sums + v * kLanes);
  for (int32_t i = 0; i < count; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      total[v] = add(total[v], load_elems<kDtype>(rows, offset[i], d + v * kLanes));
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVecs; ++v) store(sums + v * kLanes, total[v]);
  __builtin_memcpy(sum + d, sums, bytes);
}

void sum_rows(const Rows& rows, const int64_t* offset, int32_t count, float* sum) {
  with_dtype(rows.dtype, [&]<int kDtype>() {
    int32_t d = 0;
    for (; d + 4 * kLanes <= rows.dim; d += 4 * kLanes) {
      sum_channels<kDtype, 4>(rows, offset, count, d, sum);
    }
    for (; d < rows.dim; d += kLanes) sum_channels<kDtype, 1>(rows, offset, count, d, sum);
  });
}

}  // namespace
}  // namespace tsp::cpu
