// SPDX-License-Identifier: MIT
// The matrix products: a micro-kernel of 6 or 4 rows, and how its operands are held. Included after
// one vec_*.h; F32 is the arithmetic of that unit, vec_avx512.h's bf16 unit has its own.
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

/// Rows of the second operand that lie one after the other. A unit is what one lane of an operand
/// holds: a float, or a pair of bf16.
template <typename Unit>
struct Strip {
  const Unit* rows;
  int32_t depth;
};

/// sums[r] += a[r][i] * b[i] for kRows rows and kVecs vectors of columns, i over all rows of the
/// strips: the sums stay in registers from one strip to the next.
template <typename Arith, int kRows, int kVecs, bool kAccumulate>
__attribute__((noinline)) void micro_kernel(const typename Arith::Unit* a, int64_t a_stride,
                                            const Strip<typename Arith::Unit>* strips,
                                            int32_t num_strips, int64_t b_stride, float* c,
                                            int64_t c_stride) {
  Vec sums[kRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      sums[r][v] = kAccumulate ? load(c + r * c_stride + v * kLanes) : zero();
    }
  }
  const typename Arith::Unit* rows[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) rows[r] = a + r * a_stride;
  for (int32_t s = 0, i = 0; s < num_strips; ++s) {
    const typename Arith::Unit* b = strips[s].rows;
    for (const int32_t end = i + strips[s].depth; i < end; ++i, b += b_stride) {
      typename Arith::Operand operand[kVecs];
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) operand[v] = Arith::load_operand(b + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const typename Arith::Operand x = Arith::broadcast(rows[r] + i);
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) sums[r][v] = Arith::mac(x, operand[v], sums[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) store(c + r * c_stride + v * kLanes, sums[r][v]);
  }
}

/// The same for num_vecs <= kPanelVecs vectors of columns.
template <typename Arith, int kRows, bool kAccumulate>
TSP_INLINE void micro_kernel_for(int32_t num_vecs, const typename Arith::Unit* a, int64_t a_stride,
                                 const Strip<typename Arith::Unit>* strips, int32_t num_strips,
                                 int64_t b_stride, float* c, int64_t c_stride) {
  const auto run = [&]<int kVecs>() {
    micro_kernel<Arith, kRows, kVecs, kAccumulate>(a, a_stride, strips, num_strips, b_stride, c,
                                                   c_stride);
  };
  if (num_vecs == kPanelVecs) {
    run.template operator()<kPanelVecs>();
  } else if (num_vecs == 1) {
    run.template operator()<1>();
  } else if constexpr (kPanelVecs > 2) {
    if (num_vecs == 2) {
      run.template operator()<2>();
    } else {
      run.template operator()<3>();
    }
  }
}

/// Columns of a row of `left` vectors to take next: never leave a single one behind (its six sums
/// cannot hide the latency of an add).
TSP_INLINE int32_t next_vecs(int32_t left) {
  if (left <= kPanelVecs) return left;
  return left == kPanelVecs + 1 && kPanelVecs > 2 ? kPanelVecs - 1 : kPanelVecs;
}

/// Rows of the next product where `left` are to come: as few computed in vain as 6 and 4 allow. Of
/// 32 rows four products take 6 and two take 4.
template <typename Arith>
TSP_INLINE int32_t next_rows(int32_t left) {
  if constexpr (Arith::kFewRows == Arith::kRows) return Arith::kRows;
  const bool few = left <= Arith::kFewRows || (left > Arith::kRows && left <= 2 * Arith::kFewRows);
  return few ? Arith::kFewRows : Arith::kRows;
}

/// What the arithmetics whose products are micro_kernel() have in common.
template <typename Arith, typename UnitType>
struct VectorProducts {
  using Unit = UnitType;
  static constexpr int32_t kDepthUnits = 1;     // a row of q or K is a multiple of this
  static constexpr int32_t kRows = kMicroRows;  // query rows of a product, at most
  static constexpr int32_t kFewRows = 4;        // 16 sums hide a product's latency too
  static TSP_INLINE void begin() {}             // around the products of a tile
  static TSP_INLINE void end() {}
  /// c[num_rows][num_vecs vectors] (+)= a[num_rows][depth] * strips[depth][num_vecs vectors],
  /// num_rows being kRows or kFewRows and depth that of all strips.
  template <bool kAccumulate>
  static TSP_INLINE void multiply(int32_t num_rows, int32_t num_vecs, const Unit* a,
                                  int64_t a_stride, const Strip<Unit>* strips, int32_t num_strips,
                                  int64_t b_stride, float* c, int64_t c_stride) {
    if (num_rows == kRows) {
      micro_kernel_for<Arith, kRows, kAccumulate>(num_vecs, a, a_stride, strips, num_strips,
                                                  b_stride, c, c_stride);
    } else {
      micro_kernel_for<Arith, kFewRows, kAccumulate>(num_vecs, a, a_stride, strips, num_strips,
                                                     b_stride, c, c_stride);
    }
  }
};

/// Products of f32 values.
struct F32 : VectorProducts<F32, float> {
  using Operand = Vec;
  static constexpr int32_t kUnitElems = 1;
  static constexpr int32_t kWeightStride = kScoreStride;  // weights take the place of the scores
  static constexpr bool kKeepsScores = false;
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
