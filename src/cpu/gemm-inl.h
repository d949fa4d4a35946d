// SPDX-License-Identifier: MIT
// The matrix products: a micro-kernel of 6 rows, and how its operands are held. Included after one
// vec_*.h; F32 is the arithmetic of that unit, vec_avx512.h's bf16 unit has its own.
#pragma once

#include "cpu/kernels.h"

namespace tsp::cpu {
namespace {

TSP_INLINE int32_t min32(int32_t a, int32_t b) { return a < b ? a : b; }
TSP_INLINE int32_t max32(int32_t a, int32_t b) { return a > b ? a : b; }
TSP_INLINE int32_t round_up(int32_t n, int32_t to) { return (n + to - 1) / to * to; }

constexpr int32_t kBlockKeys = kMaxBlockKeys;
// NOTE: a vector more than a block, so that rows do not share their cache sets.
constexpr int32_t kScoreStride = kBlockKeys + kLanes;

/// sums[r] += a[r][i] * b[i] over i < depth for kMicroRows rows and kVecs vectors of columns.
/// A unit is what one lane of an operand holds: a float, or a pair of bf16.
template <typename Arith, int kVecs, bool kAccumulate>
__attribute__((noinline)) void micro_kernel(const typename Arith::Unit* a, int64_t a_stride,
                                            const typename Arith::Unit* b, int64_t b_stride,
                                            int32_t depth, float* c, int64_t c_stride) {
  Vec sums[kMicroRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kMicroRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      sums[r][v] = kAccumulate ? load(c + r * c_stride + v * kLanes) : zero();
    }
  }
  const typename Arith::Unit* rows[kMicroRows];
#pragma GCC unroll 8
  for (int r = 0; r < kMicroRows; ++r) rows[r] = a + r * a_stride;
  for (int32_t i = 0; i < depth; ++i, b += b_stride) {
    typename Arith::Operand operand[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) operand[v] = Arith::load_operand(b + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kMicroRows; ++r) {
      const typename Arith::Operand x = Arith::broadcast(rows[r] + i);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) sums[r][v] = Arith::mac(x, operand[v], sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kMicroRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) store(c + r * c_stride + v * kLanes, sums[r][v]);
  }
}

/// The same for num_vecs <= kPanelVecs vectors of columns.
template <typename Arith, bool kAccumulate>
TSP_INLINE void micro_kernel_for(int32_t num_vecs, const typename Arith::Unit* a, int64_t a_stride,
                                 const typename Arith::Unit* b, int64_t b_stride, int32_t depth,
                                 float* c, int64_t c_stride) {
  if (num_vecs == kPanelVecs) {
    micro_kernel<Arith, kPanelVecs, kAccumulate>(a, a_stride, b, b_stride, depth, c, c_stride);
  } else if (num_vecs == 1) {
    micro_kernel<Arith, 1, kAccumulate>(a, a_stride, b, b_stride, depth, c, c_stride);
  } else if constexpr (kPanelVecs > 2) {
    if (num_vecs == 2) {
      micro_kernel<Arith, 2, kAccumulate>(a, a_stride, b, b_stride, depth, c, c_stride);
    } else {
      micro_kernel<Arith, 3, kAccumulate>(a, a_stride, b, b_stride, depth, c, c_stride);
    }
  }
}

/// Columns of a row of `left` vectors to take next: never leave a single one behind (its six sums
/// cannot hide the latency of an add).
TSP_INLINE int32_t next_vecs(int32_t left) {
  if (left <= kPanelVecs) return left;
  return left == kPanelVecs + 1 && kPanelVecs > 2 ? kPanelVecs - 1 : kPanelVecs;
}

/// What the arithmetics whose products are micro_kernel() have in common.
template <typename Arith, typename UnitType>
struct VectorProducts {
  using Unit = UnitType;
  static constexpr int32_t kDepthUnits = 1;     // a row of q or K is a multiple of this
  static constexpr int32_t kRows = kMicroRows;  // query rows of a product
  static TSP_INLINE void begin() {}             // around the products of a tile
  static TSP_INLINE void end() {}
  /// c[kRows rows][num_vecs vectors] (+)= a[kRows rows][depth] * b[depth][num_vecs vectors].
  template <bool kAccumulate>
  static TSP_INLINE void multiply(int32_t num_vecs, const Unit* a, int64_t a_stride, const Unit* b,
                                  int64_t b_stride, int32_t depth, float* c, int64_t c_stride) {
    micro_kernel_for<Arith, kAccumulate>(num_vecs, a, a_stride, b, b_stride, depth, c, c_stride);
  }
};

/// Products of f32 values.
struct F32 : VectorProducts<F32, float> {
  using Operand = Vec;
  static constexpr int32_t kUnitElems = 1;
  static constexpr int32_t kWeightStride = kScoreStride;  // weights take the place of the scores
  static TSP_INLINE Operand load_operand(const float* p) { return load(p); }
  static TSP_INLINE Operand broadcast(const float* p) { return set1(*p); }
  static TSP_INLINE Vec mac(Operand a, Operand b, Vec sum) { return fma(a, b, sum); }

  static TSP_INLINE Vec exp2(Vec x) { return cpu::exp2(x); }
  static TSP_INLINE void store_weights(float* weights, int32_t j, Vec w) { store(weights + j, w); }
  static TSP_INLINE void store_weights(float* weights, int32_t j, Vec w, Vec w2) {
    store(weights + j, w);
    store(weights + j + kLanes, w2);
  }
  static TSP_INLINE Vec load_weights(const float* weights) { return load(weights); }
  static TSP_INLINE float weight(const float* weights, int32_t key) { return weights[key]; }
  static TSP_INLINE Vec value(const float* row, int32_t /*key*/) { return load(row); }
};

}  // namespace
}  // namespace tsp::cpu
