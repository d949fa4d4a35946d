// SPDX-License-Identifier: MIT
// Built with flags of its own: includes no header with inline functions of linkage, which another
// unit might end up calling.
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "adapters/ggml/int8/kernels.h"
#include "adapters/ggml/int8/layout.h"

namespace tsp::ggml_adapter {
namespace {

inline void store(__m512 values, float* out) { _mm512_storeu_ps(out, values); }

}  // namespace
}  // namespace tsp::ggml_adapter

#define TSP_READER
#include "adapters/ggml/weight_blocks-inl.h"

#define TSP_UNROLL _Pragma("GCC unroll 32")

namespace tsp::ggml_adapter::int8 {
namespace {

constexpr int kLanes = 16;
constexpr int kVectors = kPanelRows / kLanes;
constexpr int kGroupVectors = kGroup / kLanes;  // of f32
constexpr int kQuads = kGroup / 4;

/// A group's values, as far as there are, and zeros.
struct Values {
  __m512 v[kGroupVectors];
};

inline Values load(const float* at, int64_t count) {
  Values values;
  TSP_UNROLL
  for (int i = 0; i < kGroupVectors; ++i) {
    const int64_t left = count - i * kLanes;
    const auto mask = static_cast<__mmask16>(left >= kLanes ? 0xFFFF
                                             : left > 0     ? (1u << left) - 1
                                                            : 0);
    values.v[i] = _mm512_maskz_loadu_ps(mask, at + i * kLanes);
  }
  return values;
}

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

/// A value that is no number, or infinite (after rotate(): or close to the largest there is), gives
/// a scale that is no number: so does every result that it takes part in. Magnitudes too small to
/// be divided by become zero.
inline Quantised quantise(const Values& values) {
  constexpr int kMagnitude = 0x7FFFFFFF, kInfinity = 0x7F800000;
  constexpr float kSmallest = 0x1p-100f;
  __m512i largest = _mm512_setzero_si512();  // compared as integers, NaN is the largest
  TSP_UNROLL
  for (int i = 0; i < kGroupVectors; ++i) {
    const __m512i bits = _mm512_castps_si512(values.v[i]);
    largest = _mm512_max_epi32(largest, _mm512_and_si512(bits, _mm512_set1_epi32(kMagnitude)));
  }
  const int bits = _mm512_reduce_max_epi32(largest);
  const float magnitude = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(bits)));
  const bool usable = bits < kInfinity && magnitude >= kSmallest;
  Quantised out;
  out.scale = bits >= kInfinity ? __builtin_nanf("")
              : usable          ? magnitude / static_cast<float>(kLevels)
                                : 0;
  const __m512 factor = _mm512_set1_ps(usable ? static_cast<float>(kLevels) / magnitude : 0);
  TSP_UNROLL
  for (int i = 0; i < kGroupVectors; ++i) {
    const __m512 scaled = usable ? _mm512_mul_ps(values.v[i], factor) : _mm512_setzero_ps();
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

/// A group of activations that will be read soon, so that it is not waited for.
inline void prefetch_group(const float* at) {
  TSP_UNROLL
  for (int i = 0; i < kGroupVectors; ++i) __builtin_prefetch(at + i * kLanes);
}

/// One row of a group of a tile.
inline void pack_tile_row(Values floats, int64_t row, uint8_t* group) {
  const __m512i sign = _mm512_set1_epi8(-128);  // adds 128
  rotate(floats);
  const Quantised values = quantise(floats);
  const Bytes bytes = bytes_of(values);
  TSP_UNROLL
  for (int i = 0; i < kGroup / 64; ++i) {
    _mm512_storeu_si512(group + row * kGroup + 64 * i, _mm512_xor_si512(bytes.v[i], sign));
  }
  memcpy(group + kTileRows * kGroup + row * int64_t{sizeof(float)}, &values.scale, sizeof(float));
}

void pack_tile(const float* rows, int64_t count, int64_t k, uint8_t* tile) {
  for (int64_t first = 0; first < k; first += kGroup, tile += kTileGroupBytes) {
    for (int64_t row = 0; row < kTileRows; ++row) {
      const int64_t left = row < count ? k - first : 0;
      const Values floats = load(row < count ? rows + row * k + first : rows, left);
      if (left > 3 * kGroup) prefetch_group(rows + row * k + first + 2 * kGroup);
      pack_tile_row(floats, row, tile);
    }
  }
}

/// e to the power of each lane, to 2 units in the last place; infinity and zero beyond the range.
inline __m512 exponential(__m512 x) {
  const __m512 power = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(0x1.715476p+0f)), 0);
  __m512 rest = _mm512_fnmadd_ps(power, _mm512_set1_ps(0x1.62e400p-1f), x);
  rest = _mm512_fnmadd_ps(power, _mm512_set1_ps(0x1.7f7d1cp-20f), rest);
  constexpr float kFactors[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1, 1};  // Taylor's
  __m512 sum = _mm512_set1_ps(1.0f / 720);
  for (const float factor : kFactors) {
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(factor));
  }
  return _mm512_scalef_ps(sum, power);
}

inline __m512 silu(__m512 x) {
  const __m512 one = _mm512_set1_ps(1);
  const __m512 negated = _mm512_sub_ps(_mm512_setzero_ps(), x);
  return _mm512_div_ps(x, _mm512_add_ps(one, exponential(negated)));
}

void pack_gated(const float* gate, const float* up, int64_t count, uint8_t* group) {
  for (int64_t row = 0; row < kTileRows; ++row) {
    const int64_t left = row < count ? kGroup : 0, at = row < count ? row * kGroup : 0;
    Values values = load(gate + at, left);
    const Values factors = load(up + at, left);
    TSP_UNROLL
    for (int i = 0; i < kGroupVectors; ++i) {
      values.v[i] = _mm512_mul_ps(silu(values.v[i]), factors.v[i]);
    }
    pack_tile_row(values, row, group);
  }
}

void pack_panel_row(const float* values, int64_t count, int64_t row, uint8_t* panel) {
  for (int64_t first = 0; first < count; first += kGroup, panel += kPanelGroupBytes) {
    Values floats = load(values + first, count - first);
    rotate(floats);
    Quantised group = quantise(floats);
    group.scale /= static_cast<float>(kGroup);
    alignas(64) Bytes bytes = bytes_of(group);
    for (int64_t quad = 0; quad < kQuads; ++quad) {
      memcpy(panel + 4 * (quad * kPanelRows + row), reinterpret_cast<char*>(&bytes) + 4 * quad, 4);
    }
    __m512i sum = group.v[0];
    TSP_UNROLL
    for (int i = 1; i < kGroupVectors; ++i) sum = _mm512_add_epi32(sum, group.v[i]);
    const int32_t start = -128 * _mm512_reduce_add_epi32(sum);
    uint8_t* scales = panel + kPanelRows * kGroup;
    memcpy(scales + 4 * row, &group.scale, sizeof(float));
    memcpy(scales + 4 * (kPanelRows + row), &start, sizeof start);
  }
}

/// sum += the products of four neighbours, a's unsigned by b's signed, in each lane. As assembly:
/// g++ 12 copies every sum of the intrinsic's.
inline void add_products(__m512i& sum, __m512i a, __m512i b) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}

inline __m512i broadcast_quad(const uint8_t* at) {
  int32_t quad;
  memcpy(&quad, at, sizeof quad);
  return _mm512_set1_epi32(quad);
}

inline __m512 broadcast_float(const uint8_t* at) {
  float value;
  memcpy(&value, at, sizeof value);
  return _mm512_set1_ps(value);
}

inline __mmask16 mask_of(int64_t columns, int vector) {
  const int64_t left = columns - vector * kLanes;
  return static_cast<__mmask16>(left >= kLanes ? 0xFFFF : left > 0 ? (1u << left) - 1 : 0);
}

/// The cache lines that multiply() will write, fetched while it computes: rows of the result are
/// pages apart, and stores that miss would hold it up.
inline void prefetch_result(const Part& part, float* c, int64_t c_stride) {
  for (int64_t row = 0; row < part.rows; ++row) {
    const float* at = c + row * c_stride;
    for (int64_t column = 0; column < part.columns; column += kLanes) {
      __builtin_prefetch(at + column, 1);
    }
    __builtin_prefetch(at + part.columns - 1, 1);
  }
}

// The sums of a group and those over groups all fit the 32 registers, beside one vector of
// activations and two of weights.
void multiply(const uint8_t* tile, const uint8_t* panel, const Part& part, float* c,
              int64_t c_stride) {
  prefetch_result(part, c, c_stride);
  __m512 total[kTileRows][kVectors];
  TSP_UNROLL
  for (int row = 0; row < kTileRows; ++row) {
    TSP_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const bool from_c = part.add && row < part.rows;
      total[row][v] = _mm512_maskz_loadu_ps(from_c ? mask_of(part.columns, v) : __mmask16{0},
                                            from_c ? c + row * c_stride + v * kLanes : c);
    }
  }
  for (int64_t group = 0; group < part.groups; ++group) {
    const uint8_t* scales = panel + kPanelRows * kGroup;
    const uint8_t* starts = scales + kPanelRows * int64_t{sizeof(float)};
    __m512i sum[kTileRows][kVectors];
    TSP_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const __m512i start = _mm512_loadu_si512(starts + 64 * v);
      TSP_UNROLL
      for (int row = 0; row < kTileRows; ++row) sum[row][v] = start;
    }
    for (int64_t quad = 0; quad < kQuads; ++quad, panel += 4 * kPanelRows) {
      __m512i weights[kVectors];
      TSP_UNROLL
      for (int v = 0; v < kVectors; ++v) weights[v] = _mm512_loadu_si512(panel + 64 * v);
      TSP_UNROLL
      for (int row = 0; row < kTileRows; ++row) {
        const __m512i input = broadcast_quad(tile + row * kGroup + 4 * quad);
        TSP_UNROLL
        for (int v = 0; v < kVectors; ++v) add_products(sum[row][v], input, weights[v]);
      }
    }
    tile += kTileRows * kGroup;
    TSP_UNROLL
    for (int row = 0; row < kTileRows; ++row, tile += sizeof(float)) {
      const __m512 input_scale = broadcast_float(tile);
      TSP_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        const __m512 scale = _mm512_mul_ps(input_scale, _mm512_loadu_ps(scales + 64 * v));
        total[row][v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[row][v]), scale, total[row][v]);
      }
    }
    panel += kPanelRows * int64_t{sizeof(float) + sizeof(int32_t)};
  }
  TSP_UNROLL
  for (int row = 0; row < kTileRows; ++row) {
    TSP_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      if (row < part.rows) {
        _mm512_mask_storeu_ps(c + row * c_stride + v * kLanes, mask_of(part.columns, v),
                              total[row][v]);
      }
    }
  }
}

}  // namespace

extern const Kernels kAvx512Vnni;
const Kernels kAvx512Vnni = {"AVX512-VNNI", block_reader<float>, pack_tile,
                             pack_gated,    pack_panel_row,      multiply};

}  // namespace tsp::ggml_adapter::int8
