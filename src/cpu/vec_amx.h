// SPDX-License-Identifier: MIT
// Products of bf16 pairs by AMX: 16 rows by 16 columns by 16 pairs an instruction. The packed
// layout is that of AVX512-BF16, with the pairs of a row of q or K padded to a multiple of 16.
// Operands that are subnormal count as zero, as do subnormal sums; the sums of even and of odd
// elements are kept apart over 16 pairs. Included after vec_avx512_bf16.h and the tile operations:
// those of the processor, or of amx_emulated.h.
#pragma once

#include "cpu/gemm-inl.h"

namespace tsp::cpu {
namespace {

struct Amx : Bf16 {
  static constexpr int32_t kDepthUnits = 16;
  static constexpr int32_t kRows = 16;
  static constexpr int32_t kFewRows = 16;

  static TSP_INLINE void begin() { tile_configure(); }
  static TSP_INLINE void end() { tile_release(); }

  template <bool kAccumulate>
  static TSP_INLINE void multiply(int32_t /*num_rows*/, int32_t num_vecs, const uint32_t* a,
                                  int64_t a_stride, const Strip<uint32_t>* strips,
                                  int32_t num_strips, int64_t b_stride, float* c,
                                  int64_t c_stride) {
    multiply_strip<kAccumulate>(num_vecs, a, a_stride, strips[0], b_stride, c, c_stride);
    for (int32_t s = 1; s < num_strips; ++s) {
      a += strips[s - 1].depth;
      multiply_strip<true>(num_vecs, a, a_stride, strips[s], b_stride, c, c_stride);
    }
  }

 private:
  template <bool kAccumulate>
  static TSP_INLINE void multiply_strip(int32_t num_vecs, const uint32_t* a, int64_t a_stride,
                                        const Strip<uint32_t>& b, int64_t b_stride, float* c,
                                        int64_t c_stride) {
    switch (num_vecs) {
      case 1:
        return tiles<1, kAccumulate>(a, a_stride, b.rows, b_stride, b.depth, c, c_stride);
      case 2:
        return tiles<2, kAccumulate>(a, a_stride, b.rows, b_stride, b.depth, c, c_stride);
      case 3:
        return tiles<3, kAccumulate>(a, a_stride, b.rows, b_stride, b.depth, c, c_stride);
      default:
        return tiles<4, kAccumulate>(a, a_stride, b.rows, b_stride, b.depth, c, c_stride);
    }
  }

  // Tiles 0 .. 3 are sums, 4 holds a, 5 and 6 b in turn.
  template <int kTiles, bool kAccumulate>
  static __attribute__((noinline)) void tiles(const uint32_t* a, int64_t a_stride,
                                              const uint32_t* b, int64_t b_stride, int32_t depth,
                                              float* c, int64_t c_stride) {
    each<kTiles>([&]<int kTile>() {
      if constexpr (kAccumulate) {
        tile_load<kTile>(c + kTile * kLanes, c_stride * 4);
      } else {
        tile_zero<kTile>();
      }
    });
    int32_t i = 0;
    for (; i + 16 <= depth; i += 16, b += 16 * b_stride) step<kTiles>(a + i, a_stride, b, b_stride);
    if (i < depth) last_step<kTiles>(a + i, a_stride, b, b_stride, depth - i);
    each<kTiles>([&]<int kTile>() { tile_store<kTile>(c + kTile * kLanes, c_stride * 4); });
  }

  template <int kTiles>
  static TSP_INLINE void step(const uint32_t* a, int64_t a_stride, const uint32_t* b,
                              int64_t b_stride) {
    tile_load<4>(a, a_stride * 4);
    each<kTiles>([&]<int kTile>() {
      tile_load<5 + kTile % 2>(b + kTile * kLanes, b_stride * 4);
      tile_dot<kTile, 4, 5 + kTile % 2>();
    });
  }

  /// Fewer than 16 pairs: copied, with zeros behind, so that nothing beyond them is multiplied.
  template <int kTiles>
  static TSP_INLINE void last_step(const uint32_t* a, int64_t a_stride, const uint32_t* b,
                                   int64_t b_stride, int32_t depth) {
    alignas(64) uint32_t a_copy[16 * 16] = {};
    alignas(64) uint32_t b_copy[16 * kTiles * 16] = {};
    for (int r = 0; r < kRows; ++r) {
      __builtin_memcpy(a_copy + r * 16, a + r * a_stride, static_cast<size_t>(depth) * 4);
    }
    for (int32_t i = 0; i < depth; ++i) {
      __builtin_memcpy(b_copy + i * kTiles * 16, b + i * b_stride, kTiles * 64);
    }
    step<kTiles>(a_copy, 16, b_copy, kTiles * 16);
  }

  template <int kTiles, typename Fn>
  static TSP_INLINE void each(Fn&& fn) {
    fn.template operator()<0>();
    if constexpr (kTiles > 1) fn.template operator()<1>();
    if constexpr (kTiles > 2) fn.template operator()<2>();
    if constexpr (kTiles > 3) fn.template operator()<3>();
  }
};

}  // namespace
}  // namespace tsp::cpu
