// SPDX-License-Identifier: MIT
// Products of 8-bit integers by AMX: 32 rows by 32 columns of 16-row tiles, a group at a time.
// Included after the tile operations: those of the processor, or emulated ones.
//
// A group is two steps of 64 values for four tiles of sums, 128 cycles of products. Its sums then
// leave the tiles, and are scaled by vectors while the next group is multiplied. The result is
// that of AVX512-VNNI, bit for bit: the same integers, scaled and summed in the same order.
#pragma once

#include "adapters/ggml/panels/avx512_int8-inl.h"

namespace tsp::ggml_adapter::panels {
namespace {

struct AmxInt8 {
  using Layout = AmxLayout;
  static constexpr int kRows = Layout::kTileRows, kColumns = kPanelRows;
  static constexpr int kSide = 16;                    // of a tile of sums
  static constexpr int kStep = 64;                    // values of a row of a tile
  static constexpr int64_t kSumBytes = 4 * kColumns;  // a row of sums

  /// A group's sums, and where they are added.
  struct Scaling {
    const int32_t* sums;                // [kRows][kColumns]
    const float *row_scales, *columns;  // scales
    const float* from;
    int64_t from_stride;
    float* to;
    int64_t to_stride;
  };

  template <int kFirst>
  static __attribute__((always_inline)) void scale_rows(const Scaling& s) {
    constexpr int kAtOnce = 4;
    const __m512 left = _mm512_loadu_ps(s.columns), right = _mm512_loadu_ps(s.columns + kLanes);
    TSP_UNROLL
    for (int row = kFirst; row < kFirst + kAtOnce; ++row) {
      const __m512 row_scale = _mm512_set1_ps(s.row_scales[row]);
      const int32_t* sums = s.sums + row * kColumns;
      const float* from = s.from + row * s.from_stride;
      float* to = s.to + row * s.to_stride;
      const __m512 a = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums));
      const __m512 b = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums + kLanes));
      _mm512_storeu_ps(to,
                       _mm512_fmadd_ps(a, _mm512_mul_ps(row_scale, left), _mm512_loadu_ps(from)));
      _mm512_storeu_ps(to + kLanes, _mm512_fmadd_ps(b, _mm512_mul_ps(row_scale, right),
                                                    _mm512_loadu_ps(from + kLanes)));
    }
  }

  /// Of the tile's next group; the panel is in the first-level cache.
  template <int kHalf>
  static __attribute__((always_inline)) void prefetch_half(const uint8_t* group) {
    constexpr int kLines = kRows * kGroup / 64 / 2;
    TSP_UNROLL
    for (int i = 0; i < kLines; ++i) __builtin_prefetch(group + (kHalf * kLines + i) * 64);
  }

  /// Products of kStep values of a group, and half of the scaling of the group before it.
  template <int kHalf, bool kScale>
  static __attribute__((always_inline)) void add_step(const uint8_t* tile, const uint8_t* panel,
                                                      const Scaling& before) {
    constexpr int kRow = kHalf * kSide;
    const auto scale = [&]<int kFirst>() __attribute__((always_inline)) {
      if constexpr (kScale) scale_rows<kFirst>(before);
    };
    using namespace cpu;
    prefetch_half<kHalf>(tile + Layout::kTileGroupBytes);
    const uint8_t* rows = tile + kHalf * kStep;
    const uint8_t* columns = panel + kHalf * kSide * kSumBytes;
    tile_load<4>(rows, kGroup);
    tile_load<6>(columns, kSumBytes);
    tile_dot_int8<0, 4, 6>();
    scale.template operator()<kRow>();
    tile_load<7>(columns + kStep, kSumBytes);
    tile_dot_int8<1, 4, 7>();
    scale.template operator()<kRow + 4>();
    tile_load<5>(rows + kSide * kGroup, kGroup);
    tile_dot_int8<2, 5, 6>();
    scale.template operator()<kRow + 8>();
    tile_dot_int8<3, 5, 7>();
    scale.template operator()<kRow + 12>();
  }

  template <bool kScale>
  static __attribute__((always_inline)) void add_group(const uint8_t* tile, const uint8_t* panel,
                                                       const Scaling& before, int32_t* sums) {
    using namespace cpu;
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    tile_zero<3>();
    add_step<0, kScale>(tile, panel, before);
    add_step<1, kScale>(tile, panel, before);
    tile_store<0>(sums, kSumBytes);
    tile_store<1>(sums + kSide, kSumBytes);
    tile_store<2>(sums + kSide * kColumns, kSumBytes);
    tile_store<3>(sums + kSide * kColumns + kSide, kSumBytes);
  }

  static void multiply(const uint8_t* tile, const uint8_t* panel, const Part& part, float* c,
                       int64_t c_stride) {
    alignas(64) static constexpr float kZeros[kColumns] = {};
    // Half a page apart: a load waits for a store before it at the same place of another page.
    struct alignas(64) Memory {
      int32_t sums[kRows * kColumns];
      char apart[2048];
      float totals[kRows * kColumns];
    } memory;
    int32_t* const sums = memory.sums;
    float* const totals = memory.totals;
    prefetch_result(part, c, c_stride);
    const bool whole = part.rows == kRows && part.columns == kColumns;
    Scaling scaling = {sums, nullptr, nullptr, kZeros, 0, totals, kColumns};
    if (part.add && whole) {
      scaling.from = c;
      scaling.from_stride = c_stride;
    } else if (part.add) {
      load_part<kRows, kColumns>(part, c, c_stride, totals);
      scaling.from = totals;
      scaling.from_stride = kColumns;
    }
    add_group<false>(tile, panel, scaling, sums);
    for (int64_t group = 1; group < part.groups; ++group) {
      scaling.row_scales = reinterpret_cast<const float*>(tile + kRows * kGroup);
      scaling.columns = reinterpret_cast<const float*>(panel + kColumns * kGroup);
      tile += Layout::kTileGroupBytes;
      panel += Layout::kPanelGroupBytes;
      add_group<true>(tile, panel, scaling, sums);
      scaling.from = totals;
      scaling.from_stride = kColumns;
    }
    scaling.row_scales = reinterpret_cast<const float*>(tile + kRows * kGroup);
    scaling.columns = reinterpret_cast<const float*>(panel + kColumns * kGroup);
    if (whole) {
      scaling.to = c;
      scaling.to_stride = c_stride;
    }
    scale_all(scaling);
    if (!whole) store_part<kColumns>(part, totals, c, c_stride);
  }

  static void scale_all(const Scaling& s) {
    scale_rows<0>(s);
    scale_rows<4>(s);
    scale_rows<8>(s);
    scale_rows<12>(s);
    scale_rows<16>(s);
    scale_rows<20>(s);
    scale_rows<24>(s);
    scale_rows<28>(s);
  }
};

}  // namespace
}  // namespace tsp::ggml_adapter::panels
