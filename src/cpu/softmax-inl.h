// SPDX-License-Identifier: MIT
// One row of scores to weights, a block of keys at a time: the running maximum and sum that attend
// and score share.
#pragma once

#include "cpu/pack-inl.h"

namespace tsp::cpu {
namespace {

constexpr float kMinusInf = -__builtin_inff();
constexpr int32_t kFewScores = 64;

/// Columns of a block that a row sees: begin <= column < end, from lo and hi over all keys.
struct Span {
  int32_t begin;
  int32_t end;
  bool empty() const { return begin >= end; }
};
TSP_INLINE Span span_of(int32_t lo, int32_t hi, int32_t n0, int32_t num_keys) {
  return {max32(lo - n0, 0), min32(hi - n0, num_keys)};
}

/// Columns that share a vector with the span become minus infinity.
TSP_INLINE void mask_span(float* scores, Span span) {
  const int32_t first = span.begin / kLanes * kLanes;
  const int32_t last = (span.end - 1) / kLanes * kLanes;
  if (first != span.begin) {
    store(scores + first, keep_lanes(load(scores + first), span.begin - first, kLanes, kMinusInf));
  }
  if (last + kLanes != span.end) {
    store(scores + last, keep_lanes(load(scores + last), 0, span.end - last, kMinusInf));
  }
}

/// Masked scores to weights 2^(scale * score - max); their sum in kLanes parts.
template <typename Arith>
TSP_INLINE Vec weigh_span(const float* scores, typename Arith::Unit* weights, Span span,
                          float scale, float max) {
  const int32_t last = (span.end - 1) / kLanes * kLanes;
  // A row of nothing but -inf so far: 2^-inf = 0, not 2^(inf - inf).
  const Vec shift = set1(max == kMinusInf ? 0.0f : -max);
  const Vec scales = set1(scale);
  Vec sum = zero();
  Vec sum2 = zero();
  int32_t j = span.begin / kLanes * kLanes;
  for (; j + kLanes <= last; j += 2 * kLanes) {
    const Vec w = Arith::exp2(fma(load(scores + j), scales, shift));
    const Vec w2 = Arith::exp2(fma(load(scores + j + kLanes), scales, shift));
    sum = add(sum, w);
    sum2 = add(sum2, w2);
    Arith::store_weights(weights, j, w, w2);
  }
  if (j <= last) {
    const Vec w = Arith::exp2(fma(load(scores + j), scales, shift));
    sum = add(sum, w);
    Arith::store_weights(weights, j, w);
  }
  return add(sum, sum2);
}

TSP_INLINE Vec max_of_span(const float* scores, Span span) {
  const int32_t last = (span.end - 1) / kLanes * kLanes;
  int32_t j = span.begin / kLanes * kLanes;
  Vec top = load(scores + j);
  Vec top2 = load(scores + last);
  for (; j + 4 * kLanes <= last; j += 4 * kLanes) {
    top = vmax(top, vmax(load(scores + j), load(scores + j + kLanes)));
    top2 = vmax(top2, vmax(load(scores + j + 2 * kLanes), load(scores + j + 3 * kLanes)));
  }
  for (; j < last; j += kLanes) top = vmax(top, load(scores + j));
  return vmax(top, top2);
}

/// Scores of the visible columns to weights 2^(scale * score - max), where max is the row's maximum
/// so far, or what it was when last looked at; adds them to `sums`, the row's sum in kLanes parts.
/// Returns the factor by which what the row summed earlier shrinks. Columns that share a vector
/// with the span get weight 0.
template <typename Arith>
TSP_INLINE float softmax_span(float* scores, typename Arith::Unit* weights, Span span, float scale,
                              float* max, float* sums) {
  mask_span(scores, span);
  const float old_max = *max;
  if constexpr (Arith::kKeepsScores) {
    // The look for a maximum is 6 % of attention's time (D 64, one thread, 2 cores AMD EPYC Zen 5,
    // 2026-11-27): where a row begins it is taken of a few scores, later only where the weights
    // come out large without it.
    float near = old_max;
    if (near == kMinusInf) {
      const Span few = {span.begin, min32(span.end, span.begin + kFewScores)};
      near = reduce_max(max_of_span(scores, few)) * scale;
    }
    if (near > kMinusInf) {  // not NaN
      const Vec sum = weigh_span<Arith>(scores, weights, span, scale, near);
      if (Arith::is_moderate(sum)) {
        *max = near;
        store(sums, add(load(sums), sum));
        return 1.0f;
      }
    }
  }
  const float block_max = reduce_max(max_of_span(scores, span)) * scale;
  const float new_max = old_max > block_max ? old_max : block_max;
  const Vec sum = weigh_span<Arith>(scores, weights, span, scale, new_max);
  float shrink = 1.0f;
  if (new_max != old_max) {  // NaN too
    *max = new_max;
    shrink = first_lane(exp2(set1(old_max - new_max)));
    store(sums, fma(load(sums), set1(shrink), sum));
  } else {
    store(sums, add(load(sums), sum));
  }
  return shrink;
}

/// Scores of every row against the keys of a block, where any row of a product sees a vector of
/// them. scores[r][column] has stride kScoreStride.
template <typename Arith>
TSP_INLINE void multiply_keys(const float* q, int32_t q_stride, int32_t num_rows, int32_t depth,
                              const int32_t* lo, const int32_t* hi, int32_t n0, int32_t num_keys,
                              const void* k_panels, float* scores) {
  using Unit = typename Arith::Unit;
  const auto* const rows = reinterpret_cast<const Unit*>(q);
  const Unit* panel = static_cast<const Unit*>(k_panels);
  for (int32_t p = 0; p < num_keys; p += kPanelKeys, panel += depth * int64_t{kPanelKeys}) {
    for (int32_t r = 0, taken = 0; r < num_rows; r += taken) {
      taken = next_rows<Arith>(num_rows - r);
      const int32_t last_row = min32(r + taken, num_rows) - 1;
      const int32_t end = min32(hi[last_row] - n0, num_keys) - p;
      const int32_t first = lo == nullptr ? 0 : max32(lo[r] - n0 - p, 0) / kLanes;
      const int32_t num_vecs = min32(kPanelVecs, (end + kLanes - 1) / kLanes) - first;
      if (end <= 0 || num_vecs <= 0) continue;
      const int32_t column = first * kLanes;
      const Strip<Unit> strip = {panel + column, depth};
      Arith::template multiply<false>(
          taken, num_vecs, rows + int64_t{r} * q_stride, q_stride, &strip, 1, kPanelKeys,
          scores + int64_t{r} * kScoreStride + p + column, kScoreStride);
    }
  }
}

}  // namespace
}  // namespace tsp::cpu
