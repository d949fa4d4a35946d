// SPDX-License-Identifier: MIT
// Operands in 8 bits (int8_layout.h) made by AVX-512, for whoever multiplies them.
#pragma once

#include <string.h>

#include "adapters/ggml/panels/avx512-inl.h"
#include "adapters/ggml/panels/avx512_reader-inl.h"
#include "adapters/ggml/panels/int8_layout.h"

namespace tsp::ggml_adapter::panels {
namespace {

/// One step of rotate(): each lane and its partner, `Shuffle` away, become their sum and
/// difference.
template <__m512 (*partner)(__m512)>
inline void butterfly(__m512& v, __m512 sign) {
  v = _mm512_fmadd_ps(v, sign, partner(v));
}

inline __m512 partner8(__m512 v) { return _mm512_shuffle_f32x4(v, v, 0x4E); }
inline __m512 partner4(__m512 v) { return _mm512_shuffle_f32x4(v, v, 0xB1); }
inline __m512 partner2(__m512 v) { return _mm512_permute_ps(v, 0x4E); }
inline __m512 partner1(__m512 v) { return _mm512_permute_ps(v, 0xB1); }

/// 1, and -1 in the lanes of `mask`.
inline __m512 signs(__mmask16 mask) {
  return _mm512_mask_blend_ps(mask, _mm512_set1_ps(1), _mm512_set1_ps(-1));
}

/// Hadamard's matrix times the group.
inline void rotate(Values& values) {
  TSP_UNROLL
  for (int distance = 1; distance < kGroupVectors; distance *= 2) {
    TSP_UNROLL
    for (int i = 0; i < kGroupVectors; ++i) {
      if ((i & distance) != 0) continue;
      const __m512 a = values.v[i], b = values.v[i + distance];
      values.v[i] = _mm512_add_ps(a, b);
      values.v[i + distance] = _mm512_sub_ps(a, b);
    }
  }
  TSP_UNROLL
  for (int i = 0; i < kGroupVectors; ++i) {
    butterfly<partner8>(values.v[i], signs(0xFF00));
    butterfly<partner4>(values.v[i], signs(0xF0F0));
    butterfly<partner2>(values.v[i], signs(0xCCCC));
    butterfly<partner1>(values.v[i], signs(0xAAAA));
  }
}

struct Quantised {
  __m512i v[kGroupVectors];  // int32 in [-127, 127]
  float scale;
};

/// After rotate() a value close to the largest there is may be infinite.
inline Quantised quantise(const Values& values) {
  const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
  __m512i largest = _mm512_setzero_si512();
  TSP_UNROLL
  for (int i = 0; i < kGroupVectors; ++i) {
    const __m512i bits = _mm512_castps_si512(values.v[i]);
    largest = _mm512_max_epi32(largest, _mm512_and_si512(bits, magnitude));
  }
  const GroupScale group = group_scale(_mm512_reduce_max_epi32(largest));
  const __m512 factor = _mm512_set1_ps(group.factor);
  Quantised out;
  out.scale = group.scale;
  TSP_UNROLL
  for (int i = 0; i < kGroupVectors; ++i) {
    const __m512 scaled = group.usable ? _mm512_mul_ps(values.v[i], factor) : _mm512_setzero_ps();
    out.v[i] = _mm512_cvtps_epi32(scaled);
  }
  return out;
}

/// The values as bytes, in an order of quads that is the packing instructions' and the same for
/// activations and weights.
struct Bytes {
  __m512i v[kGroup / 64];
};

inline Bytes bytes_of(const Quantised& values) {
  Bytes bytes;
  TSP_UNROLL
  for (int i = 0; i < kGroup / 64; ++i) {
    const __m512i* v = values.v + 4 * i;
    bytes.v[i] = _mm512_packs_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3]));
  }
  return bytes;
}

/// One row of a group of a tile.
template <class Layout>
inline void pack_tile_row(Values floats, int64_t row, uint8_t* group) {
  const __m512i sign = _mm512_set1_epi8(Layout::kUnsigned ? -128 : 0);  // adds 128
  rotate(floats);
  const Quantised values = quantise(floats);
  const Bytes bytes = bytes_of(values);
  TSP_UNROLL
  for (int i = 0; i < kGroup / 64; ++i) {
    _mm512_storeu_si512(group + row * kGroup + 64 * i, _mm512_xor_si512(bytes.v[i], sign));
  }
  memcpy(group + Layout::kTileRows * kGroup + row * int64_t{sizeof(float)}, &values.scale,
         sizeof(float));
}

template <class Layout>
void pack_tile(const float* rows, int64_t count, int64_t k, uint8_t* tile) {
  for (int64_t first = 0; first < k; first += kGroup, tile += Layout::kTileGroupBytes) {
    for (int64_t row = 0; row < Layout::kTileRows; ++row) {
      const int64_t left = row < count ? k - first : 0;
      const Values floats = load(row < count ? rows + row * k + first : rows, left);
      if (left > 3 * kGroup) prefetch_group(rows + row * k + first + 2 * kGroup);
      pack_tile_row<Layout>(floats, row, tile);
    }
  }
}

template <class Layout>
void pack_gated(const float* gate, const float* up, int64_t count, uint8_t* group) {
  for (int64_t row = 0; row < Layout::kTileRows; ++row) {
    const int64_t left = row < count ? kGroup : 0, at = row < count ? row * kGroup : 0;
    pack_tile_row<Layout>(gated(load(gate + at, left), load(up + at, left)), row, group);
  }
}

template <class Layout>
void pack_panel_row(const float* values, int64_t count, int64_t row, uint8_t* panel) {
  for (int64_t first = 0; first < count; first += kGroup, panel += Layout::kPanelGroupBytes) {
    Values floats = load(values + first, count - first);
    rotate(floats);
    Quantised group = quantise(floats);
    group.scale /= static_cast<float>(kGroup);
    const Bytes bytes = bytes_of(group);
    __m512i sum = group.v[0];
    TSP_UNROLL
    for (int i = 1; i < kGroupVectors; ++i) sum = _mm512_add_epi32(sum, group.v[i]);
    const int32_t start = -128 * _mm512_reduce_add_epi32(sum);
    store_panel_row<Layout>(&bytes, group.scale, start, row, panel);
  }
}

template <class Layout>
void pack_panel_rows(const float* values, int64_t stride, int64_t count, int64_t row,
                     uint8_t* panel) {
  for (int64_t i = 0; i < kPackedRows; ++i) {
    pack_panel_row<Layout>(values + i * stride, count, row + i, panel);
  }
}

/// Of whoever multiplies operands of that layout.
template <class Layout>
constexpr Kernels int8_table(const char* instructions, decltype(Kernels::multiply) multiply) {
  return {"int8",
          instructions,
          Layout::kTileRows,
          kPanelRows,
          Layout::kTileGroupBytes,
          Layout::kPanelGroupBytes,
          block_reader<float>,
          pack_tile<Layout>,
          pack_gated<Layout>,
          pack_panel_rows<Layout>,
          multiply,
          normalise};
}

}  // namespace
}  // namespace tsp::ggml_adapter::panels
