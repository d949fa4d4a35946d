// SPDX-License-Identifier: MIT
// Column sums of the window's softmax rows. A column's weight needs every row's final sum, so the
// weights of 24 rows wait in the cache (0.8 MB at 8K keys in f32) until their rows are done:
// cheaper than a second multiplication by all keys. bf16 arithmetic rounds them as attend's.
#pragma once

#include "cpu/softmax-inl.h"

namespace tsp::cpu {
namespace {

template <typename Arith>
constexpr int32_t kScoreRowsOf = ((kScoreRows - 1) / Arith::kRows + 1) * Arith::kRows;

template <typename Arith>
struct ScoreScratch {
  using Unit = typename Arith::Unit;
  int32_t q_stride;  // units
  float* q;          // [kScoreRowsOf<Arith>, q_stride] units
  float* sums;       // [kScoreRows, kLanes]
  float* max;        // [kScoreRows] running maximum
  float* row;        // [kScoreRows] a row's factor in the block at hand
  float* maxima;     // [blocks, kScoreRows] the maximum that a block's weights were taken against
  float* scores;     // [kScoreRowsOf<Arith>, kScoreStride] of the block at hand
  Unit* weights;     // [blocks, kScoreRows, Arith::kWeightStride]
  size_t bytes;

  ScoreScratch(void* base, int32_t dim, int32_t keys)
      : q_stride(round_up(units_of<Arith>(dim), kLanes)) {
    const int64_t blocks = (keys + kBlockKeys - 1) / kBlockKeys;
    auto* at = static_cast<float*>(base);
    const auto take = [&at](int64_t count) {
      float* const here = at;
      at += (count + 15) / 16 * 16;
      return here;
    };
    q = take(int64_t{kScoreRowsOf<Arith>} * q_stride);
    sums = take(kScoreRows * kLanes);
    max = take(kScoreRows);
    row = take(kScoreRows);
    maxima = take(blocks * kScoreRows);
    scores = take(int64_t{kScoreRowsOf<Arith>} * kScoreStride);
    weights = reinterpret_cast<Unit*>(take(blocks * kScoreRows * Arith::kWeightStride));
    bytes = static_cast<size_t>(at - static_cast<float*>(base)) * sizeof(float);
  }
};

template <typename Arith>
size_t score_scratch_bytes(int32_t dim, int32_t keys) {
  alignas(64) static float nothing[16];
  return ScoreScratch<Arith>(nothing, dim, keys).bytes;
}

/// columns[j ..] (+)= sum over rows of factor * weight, kVecs vectors wide.
template <typename Arith, int kVecs>
TSP_INLINE void add_columns(const ScoreTile& tile, const float* factors,
                            const typename Arith::Unit* weights, float* columns) {
  Vec sums[kVecs];
#pragma GCC unroll 8
  for (int v = 0; v < kVecs; ++v) sums[v] = tile.first ? zero() : load(columns + v * kLanes);
  for (int32_t r = 0; r < tile.num_rows; ++r) {
    const Vec factor = set1(factors[r]);
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      sums[v] = fma(
          factor,
          Arith::load_weights(weights + r * Arith::kWeightStride + v * kLanes / Arith::kUnitElems),
          sums[v]);
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVecs; ++v) store(columns + v * kLanes, sums[v]);
}

/// Weights and their sums of every block. `running`: against each row's maximum so far; else all
/// against that of its first block, which saves a look at the scores.
template <typename Arith>
TSP_INLINE void weigh_blocks(const ScoreTile& tile, const ScoreScratch<Arith>& s, int32_t num_keys,
                             bool running) {
  for (int32_t r = 0; r < tile.num_rows; ++r) {
    store(s.sums + r * kLanes, zero());
    s.max[r] = kMinusInf;
  }
  const int32_t depth = units_of<Arith>(tile.q.dim);
  Arith::begin();
  const auto* const panels = static_cast<const typename Arith::Unit*>(tile.k_panels);
  for (int32_t n0 = 0; n0 < num_keys; n0 += kBlockKeys) {
    const int64_t block = n0 / kBlockKeys;
    const int32_t count = min32(kBlockKeys, num_keys - n0);
    auto* const weights = s.weights + block * kScoreRows * Arith::kWeightStride;
    multiply_keys<Arith>(s.q, s.q_stride, tile.num_rows, depth, nullptr, tile.hi, n0, count,
                         panels + int64_t{n0} * depth, s.scores);
    for (int32_t r = 0; r < tile.num_rows; ++r) {
      const Span span = span_of(0, tile.hi[r], n0, count);
      if (span.empty()) continue;
      float* const scores = s.scores + r * kScoreStride;
      typename Arith::Unit* const row = weights + r * Arith::kWeightStride;
      if (running || n0 == 0) {
        softmax_span<Arith>(scores, row, span, tile.scale_log2, s.max + r, s.sums + r * kLanes);
      } else {
        mask_span(scores, span);
        const Vec sum = weigh_span<Arith>(scores, row, span, tile.scale_log2, s.max[r]);
        store(s.sums + r * kLanes, add(load(s.sums + r * kLanes), sum));
      }
    }
    for (int32_t r = 0; r < tile.num_rows; ++r) s.maxima[block * kScoreRows + r] = s.max[r];
  }
  Arith::end();
}

template <typename Arith>
void score_tile(const ScoreTile& tile) {
  const int32_t num_keys = tile.hi[tile.num_rows - 1];
  const ScoreScratch<Arith> s(tile.scratch, tile.q.dim, num_keys);
  load_queries<Arith>(tile.q, tile.q_offset, tile.num_rows, s.q, s.q_stride);
  bool in_range = false;
  for (int attempt = 0; attempt < 2 && !in_range; ++attempt) {
    weigh_blocks<Arith>(tile, s, num_keys, attempt > 0 || !kExp2Overflows);
    in_range = true;
    for (int32_t r = 0; r < tile.num_rows; ++r) {
      const float sum = reduce_add(load(s.sums + r * kLanes));
      // Not so: NaN, or later keys drew far more than the first block's.
      in_range = in_range && sum >= 0.5f && sum < 0x1p64f;
      s.sums[r * kLanes] = tile.row_weight / sum;
    }
  }
  for (int32_t n0 = 0; n0 < tile.num_columns; n0 += kBlockKeys) {
    const int64_t block = n0 / kBlockKeys;
    for (int32_t r = 0; r < tile.num_rows; ++r) {
      const float before = s.maxima[block * kScoreRows + r] - s.max[r];
      s.row[r] = first_lane(exp2(set1(before))) * s.sums[r * kLanes];
    }
    const auto* const weights = s.weights + block * kScoreRows * Arith::kWeightStride;
    const int32_t count = min32(kBlockKeys, tile.num_columns - n0);
    int32_t j = 0;
    for (; j + 8 * kLanes <= count; j += 8 * kLanes) {
      add_columns<Arith, 8>(tile, s.row, weights + j / Arith::kUnitElems, tile.columns + n0 + j);
    }
    for (; j < count; j += kLanes) {
      add_columns<Arith, 1>(tile, s.row, weights + j / Arith::kUnitElems, tile.columns + n0 + j);
    }
  }
}

}  // namespace
}  // namespace tsp::cpu
