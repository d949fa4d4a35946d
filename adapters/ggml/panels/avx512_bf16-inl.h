// SPDX-License-Identifier: MIT
// Operands in bf16 made by AVX512-BF16, for whoever multiplies them.
//
// Activations: tiles of some rows; a group of a tile is uint16_t values[rows][kGroup].
// Weights: panels of kBf16PanelRows rows; a group of a panel is
//   uint16_t values[kGroup / 2][kBf16PanelRows][2]
#pragma once

#include <string.h>

#include "adapters/ggml/panels/avx512-inl.h"
#include "adapters/ggml/panels/avx512_reader-inl.h"

namespace tsp::ggml_adapter::panels {
namespace {

constexpr int kBf16PanelRows = 32;
constexpr int kPairs = kGroup / 2;
constexpr int kRowBytes = kGroup * 2;  // of a group

/// 16 pairs of a row's group.
inline __m512i pairs_of(const Values& values, int first) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(values.v[first + 1], values.v[first]));
}

inline void store_rounded(const Values& values, uint8_t* out) {
  TSP_UNROLL
  for (int i = 0; i < kGroupVectors; i += 2) _mm512_storeu_si512(out + i * 32, pairs_of(values, i));
}

template <int kTileRows>
void pack_tile(const float* rows, int64_t count, int64_t k, uint8_t* tile) {
  for (int64_t first = 0; first < k; first += kGroup) {
    for (int64_t row = 0; row < kTileRows; ++row, tile += kRowBytes) {
      const int64_t left = row < count ? k - first : 0;
      const float* const at = row < count ? rows + row * k + first : rows;
      if (left > 3 * kGroup) prefetch_group(at + 2 * kGroup);
      store_rounded(load(at, left), tile);
    }
  }
}

template <int kTileRows>
void pack_gated(const float* gate, const float* up, int64_t count, uint8_t* group) {
  for (int64_t row = 0; row < kTileRows; ++row, group += kRowBytes) {
    const int64_t left = row < count ? kGroup : 0, at = row < count ? row * kGroup : 0;
    store_rounded(gated(load(gate + at, left), load(up + at, left)), group);
  }
}

/// One pair each of four rows from every part of 128 bits: pairs 0, 4, 8 and 12.
inline void store_parts(__m512i parts, uint8_t* panel) {
  constexpr int kStride = 4 * 4 * kBf16PanelRows;
  const auto at = [panel](int i) { return reinterpret_cast<__m128i*>(panel + i * kStride); };
  _mm_storeu_si128(at(0), _mm512_castsi512_si128(parts));
  _mm_storeu_si128(at(1), _mm512_extracti32x4_epi32(parts, 1));
  _mm_storeu_si128(at(2), _mm512_extracti32x4_epi32(parts, 2));
  _mm_storeu_si128(at(3), _mm512_extracti32x4_epi32(parts, 3));
}

void pack_panel_rows(const float* values, int64_t stride, int64_t count, int64_t row,
                     uint8_t* panel) {
  static_assert(kPackedRows == 4, "rows of a part of 128 bits");
  constexpr int kPairBytes = 4 * kBf16PanelRows;
  panel += 4 * row;
  for (int64_t first = 0; first < count; first += kGroup) {
    Values rows[4];
    TSP_UNROLL
    for (int i = 0; i < 4; ++i) rows[i] = load(values + i * stride + first, count - first);
    for (int v = 0; v < kGroupVectors; v += 2, panel += 16 * kPairBytes) {
      const __m512i a = pairs_of(rows[0], v), b = pairs_of(rows[1], v);
      const __m512i c = pairs_of(rows[2], v), d = pairs_of(rows[3], v);
      const __m512i low_ab = _mm512_unpacklo_epi32(a, b), high_ab = _mm512_unpackhi_epi32(a, b);
      const __m512i low_cd = _mm512_unpacklo_epi32(c, d), high_cd = _mm512_unpackhi_epi32(c, d);
      store_parts(_mm512_unpacklo_epi64(low_ab, low_cd), panel);
      store_parts(_mm512_unpackhi_epi64(low_ab, low_cd), panel + kPairBytes);
      store_parts(_mm512_unpacklo_epi64(high_ab, high_cd), panel + 2 * kPairBytes);
      store_parts(_mm512_unpackhi_epi64(high_ab, high_cd), panel + 3 * kPairBytes);
    }
  }
}

/// Of whoever multiplies tiles of that many rows.
template <int kTileRows>
constexpr Kernels bf16_table(const char* instructions, decltype(Kernels::multiply) multiply) {
  return {"bf16",
          instructions,
          kTileRows,
          kBf16PanelRows,
          kTileRows * kRowBytes,
          kBf16PanelRows * kRowBytes,
          block_reader<float>,
          pack_tile<kTileRows>,
          pack_gated<kTileRows>,
          pack_panel_rows,
          multiply,
          normalise};
}

}  // namespace
}  // namespace tsp::ggml_adapter::panels
