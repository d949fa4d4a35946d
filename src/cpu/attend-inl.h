// SPDX-License-Identifier: MIT
// An attend tile: 48 query rows that walk over blocks of 512 packed keys. Per block: scores and
// weights of a few rows at a time, then the weighted values into the sums of all rows. What a row
// does not see is never multiplied: a NaN or infinity behind the diagonal cannot leak through a
// weight of zero.
#pragma once

#include "cpu/softmax-inl.h"

namespace tsp::cpu {
namespace {

template <typename Arith>
struct TileScratch {
  using Unit = typename Arith::Unit;
  int32_t q_stride;  // units
  int32_t o_stride;  // floats
  float* q;          // [kTileRows, q_stride] units
  float* scores;     // [kTileRows, kScoreStride]
  Unit* weights;     // f32: the scores' place; bf16: [kTileRows, Arith::kWeightStride]
  float* o;          // [kTileRows, o_stride] weighted values so far
  float* sums;       // [kTileRows, kLanes] weights so far
  float* max;        // [kTileRows]

  TileScratch(void* base, int32_t dim)
      : q_stride(round_up(units_of<Arith>(dim), kLanes)), o_stride(round_up(dim, kLanes)) {
    auto* at = static_cast<float*>(base);
    const auto take = [&at](int64_t count) {
      float* const here = at;
      at += round_up(static_cast<int32_t>(count), 16);
      return here;
    };
    q = take(int64_t{kTileRows} * q_stride);
    scores = take(int64_t{kTileRows} * kScoreStride);
    weights = reinterpret_cast<Unit*>(
        Arith::kUnitElems == 1 ? scores : take(int64_t{kTileRows} * Arith::kWeightStride));
    o = take(int64_t{kTileRows} * o_stride);
    sums = take(kTileRows * kLanes);
    max = take(kTileRows);
    bytes = static_cast<size_t>(at - static_cast<float*>(base)) * sizeof(float);
  }
  size_t bytes;
};

template <typename Arith>
size_t tile_scratch_bytes(int32_t dim) {
  alignas(64) static float nothing[16];
  return TileScratch<Arith>(nothing, dim).bytes;
}

template <typename Arith>
void tile_begin(const Tile& tile) {
  Arith::begin();
  const TileScratch<Arith> s(tile.scratch, tile.q.dim);
  load_queries<Arith>(tile.q, tile.q_offset, tile.num_rows, s.q, s.q_stride);
  const int32_t rows = round_up(tile.num_rows, Arith::kRows);
  for (int32_t i = 0; i < rows * s.o_stride; i += kLanes) store(s.o + i, zero());
  for (int32_t r = 0; r < rows; ++r) {
    store(s.sums + r * kLanes, zero());
    s.max[r] = kMinusInf;
  }
}

/// o[row] += weight * value, a key after the other, for the few keys that not all rows of a product
/// see.
template <typename Arith, int kVecs>
TSP_INLINE void add_values_of(float* o, const typename Arith::Unit* weights, Span keys,
                              const typename Arith::Unit* values, int32_t stride) {
  Vec sums[kVecs];
#pragma GCC unroll 8
  for (int v = 0; v < kVecs; ++v) sums[v] = load(o + v * kLanes);
  for (int32_t key = keys.begin; key < keys.end; ++key) {
    const typename Arith::Unit* const value = values + key / Arith::kUnitElems * stride;
    const Vec weight = set1(Arith::weight(weights, key));
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      sums[v] = fma(weight, Arith::value(value + v * kLanes, key), sums[v]);
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVecs; ++v) store(o + v * kLanes, sums[v]);
}

template <typename Arith>
TSP_INLINE void add_values(const TileScratch<Arith>& s, int32_t row, int32_t column, Span keys,
                           const typename Arith::Unit* values) {
  if (keys.empty()) return;
  float* const o = s.o + int64_t{row} * s.o_stride;
  const typename Arith::Unit* const weights =
      s.weights + int64_t{row} * Arith::kWeightStride + column / Arith::kUnitElems;
  int32_t d = 0;
  for (; d + 4 * kLanes <= s.o_stride; d += 4 * kLanes) {
    add_values_of<Arith, 4>(o + d, weights, keys, values + d, s.o_stride);
  }
  for (; d < s.o_stride; d += kLanes) {
    add_values_of<Arith, 1>(o + d, weights, keys, values + d, s.o_stride);
  }
}

/// Calls fn(first column of the span, the columns of `keys` in it, its values) for every span that
/// holds some of them.
template <typename Arith, typename Fn>
TSP_INLINE void for_each_part(const KeySpan* spans, int32_t num_spans, Span keys, Fn&& fn) {
  for (int32_t i = 0, column = 0; i < num_spans && column < keys.end;
       column += spans[i++].num_keys) {
    const Span part = span_of(keys.begin, keys.end, column, spans[i].num_keys);
    if (part.empty()) continue;
    fn(column, part, static_cast<const typename Arith::Unit*>(spans[i].v_rows));
  }
}

/// Rows of one product, and the columns that all of them see, in whole units.
struct Product {
  int32_t first;
  int32_t end;
  int32_t num_rows;  // computed
  Span common;
};

/// What the common columns leave of a product's rows, a row at a time.
template <typename Arith>
TSP_INLINE void add_rest(const Tile& tile, const TileScratch<Arith>& s, int32_t n0,
                         int32_t num_keys, const KeySpan* spans, int32_t num_spans,
                         const Product& rows) {
  const Span done = rows.common;
  const Span any = span_of(tile.lo[rows.first], tile.hi[rows.end - 1], n0, num_keys);
  if (any.empty() || (done.begin <= any.begin && any.end <= done.end)) return;
  for (int32_t r = rows.first; r < rows.end; ++r) {
    const Span all = span_of(tile.lo[r], tile.hi[r], n0, num_keys);
    const auto add = [&](Span keys) {
      for_each_part<Arith>(spans, num_spans, keys, [&](int32_t column, Span part, auto* values) {
        add_values(s, r, column, part, values);
      });
    };
    if (done.empty()) {
      add(all);
      continue;
    }
    add({all.begin, done.begin});
    add({done.end, all.end});
  }
}

/// Of keys n0 .., whose weights are those of a step.
template <typename Arith>
TSP_INLINE void multiply_values(const Tile& tile, const TileScratch<Arith>& s, int32_t n0,
                                int32_t num_keys, const KeySpan* spans, int32_t num_spans) {
  static_assert(kTileRows % Arith::kRows == 0, "a tile is whole micro-blocks");
  using Unit = typename Arith::Unit;
  constexpr int32_t kUnit = Arith::kUnitElems;
  Product products[kTileRows / Arith::kFewRows];
  int32_t num_products = 0;
  for (int32_t r = 0; r < tile.num_rows; r = products[num_products++].end) {
    Product& rows = products[num_products];
    rows.first = r;
    rows.num_rows = next_rows<Arith>(tile.num_rows - r);
    rows.end = min32(r + rows.num_rows, tile.num_rows);
    rows.common = span_of(tile.lo[rows.end - 1], tile.hi[r], n0, num_keys);
    rows.common.begin = round_up(rows.common.begin, kUnit);
    rows.common.end = rows.common.end > 0 ? rows.common.end / kUnit * kUnit : 0;
  }
  const int32_t num_vecs = s.o_stride / kLanes;
  for (int32_t v = 0; v < num_vecs;) {
    const int32_t take = next_vecs(num_vecs - v);
    for (int32_t p = 0; p < num_products; ++p) {
      const Product& rows = products[p];
      if (rows.common.empty()) continue;
      Strip<Unit> strips[kMaxSpans];
      int32_t num_strips = 0;
      for_each_part<Arith>(spans, num_spans, rows.common, [&](int32_t, Span part, auto* values) {
        strips[num_strips++] = {
            values + int64_t{part.begin / kUnit} * s.o_stride + v * kLanes,
            (part.end - part.begin) / kUnit,
        };
      });
      Arith::template multiply<true>(
          rows.num_rows, take,
          s.weights + int64_t{rows.first} * Arith::kWeightStride + rows.common.begin / kUnit,
          Arith::kWeightStride, strips, num_strips, s.o_stride,
          s.o + int64_t{rows.first} * s.o_stride + v * kLanes, s.o_stride);
    }
    v += take;
  }
  for (int32_t p = 0; p < num_products; ++p) {
    add_rest(tile, s, n0, num_keys, spans, num_spans, products[p]);
  }
}

/// Asks for the lines of a row before they are needed.
TSP_INLINE void prefetch_row(const char* row, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 0, 2);
}

/// Row r's place in the results, and its share of the rows of q that come next: a few lines between
/// the weights of a row and those of another, as many as may wait for memory at once.
TSP_INLINE void prefetch_ahead(const Tile& tile, int32_t r) {
  const auto bytes_of = [](int32_t dtype) { return dtype == 0 ? int64_t{4} : int64_t{2}; };
  if (tile.out_dim_stride == 1) {
    const int64_t bytes = bytes_of(tile.out_dtype);
    prefetch_row(static_cast<const char*>(tile.out) + tile.out_offset[r] * bytes,
                 tile.q.dim * bytes);
  }
  if (tile.q.dim_stride != 1) return;
  const int64_t bytes = bytes_of(tile.q.dtype);
  for (int32_t a = r; a < tile.num_ahead; a += tile.num_rows) {
    prefetch_row(static_cast<const char*>(tile.q.data) + tile.ahead_offset[a] * bytes,
                 tile.q.dim * bytes);
  }
}

template <typename Arith>
void tile_block(const Tile& tile, int32_t n0, const KeySpan* spans, int32_t num_spans) {
  const TileScratch<Arith> s(tile.scratch, tile.q.dim);
  int32_t num_keys = 0;
  for (int32_t i = 0; i < num_spans; ++i) num_keys += spans[i].num_keys;
  // A product's rows at a time, so that their scores are still in L1 when they become weights.
  for (int32_t first = 0, end = 0; first < tile.num_rows; first = end) {
    end = min32(first + next_rows<Arith>(tile.num_rows - first), tile.num_rows);
    for (int32_t i = 0, column = 0; i < num_spans; column += spans[i++].num_keys) {
      multiply_keys<Arith>(s.q + int64_t{first} * s.q_stride, s.q_stride, end - first,
                           units_of<Arith>(tile.q.dim), tile.lo + first, tile.hi + first,
                           n0 + column, spans[i].num_keys, spans[i].k_panels,
                           s.scores + int64_t{first} * kScoreStride + column);
    }
    for (int32_t r = first; r < end; ++r) {
      if (tile.num_ahead >= 0) prefetch_ahead(tile, r);
      const Span span = span_of(tile.lo[r], tile.hi[r], n0, num_keys);
      if (span.empty()) continue;
      const float shrink = softmax_span<Arith>(s.scores + int64_t{r} * kScoreStride,
                                               s.weights + int64_t{r} * Arith::kWeightStride, span,
                                               tile.scale_log2, s.max + r, s.sums + r * kLanes);
      if (shrink == 1.0f) continue;
      float* const o = s.o + int64_t{r} * s.o_stride;
      for (int32_t d = 0; d < s.o_stride; d += kLanes) store(o + d, mul(load(o + d), set1(shrink)));
    }
  }
  multiply_values<Arith>(tile, s, n0, num_keys, spans, num_spans);
}

template <int kDtype>
TSP_INLINE void store_from_f32(void* p, Vec v) {
  if constexpr (kDtype == 0) store(static_cast<float*>(p), v);
  if constexpr (kDtype == 1) store_f16(static_cast<uint16_t*>(p), v);
  if constexpr (kDtype == 2) store_bf16(static_cast<uint16_t*>(p), v);
}

template <typename Arith>
void tile_end(const Tile& tile) {
  Arith::end();
  const TileScratch<Arith> s(tile.scratch, tile.q.dim);
  with_dtype(tile.out_dtype, [&]<int kDtype>() {
    constexpr int64_t kBytes = kDtype == 0 ? 4 : 2;
    for (int32_t r = 0; r < tile.num_rows; ++r) {
      const float sum = reduce_add(load(s.sums + r * kLanes));
      const bool any = s.max[r] > kMinusInf;  // false too for NaN
      const float inverse = any ? 1.0f / sum : __builtin_nanf("");
      const float* const o = s.o + int64_t{r} * s.o_stride;
      char* const out = static_cast<char*>(tile.out) + tile.out_offset[r] * kBytes;
      for (int32_t d = 0; d < tile.q.dim; d += kLanes) {
        const Vec v = mul(load(o + d), set1(inverse));
        if (tile.out_dim_stride == 1 && d + kLanes <= tile.q.dim) {
          store_from_f32<kDtype>(out + d * kBytes, v);
          continue;
        }
        alignas(64) char buffer[kLanes * kBytes];
        store_from_f32<kDtype>(buffer, v);
        for (int32_t i = 0; i < kLanes && d + i < tile.q.dim; ++i) {
          __builtin_memcpy(out + (d + i) * tile.out_dim_stride * kBytes, buffer + i * kBytes,
                           kBytes);
        }
      }
      if (tile.lse == nullptr) continue;
      constexpr float kLn2 = 0.6931471805599453f;
      tile.lse[tile.lse_offset[r]] =
          any ? s.max[r] * kLn2 + __builtin_logf(sum) : __builtin_nanf("");
    }
  });
}

}  // namespace
}  // namespace tsp::cpu
