// SPDX-License-Identifier: MIT
// For processors that have AVX-VNNI and no AVX-512. Built with flags of its own: includes no header
// with inline functions of linkage, which another unit might end up calling.
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "adapters/ggml/panels/int8_layout.h"

#define TSP_UNROLL _Pragma("GCC unroll 32")

namespace tsp::ggml_adapter::panels {
namespace {

using Layout = VnniLayout;
constexpr int64_t kTileRows = Layout::kTileRows;

constexpr int kLanes = 8;
constexpr int kGroupVectors = kGroup / kLanes;  // of f32
constexpr int kBytes = 32;                      // of a vector

struct Values {
  __m256 v[kGroupVectors];
};

/// A group's values, as far as there are, and zeros.
inline Values load(const float* at, int64_t count) {
  Values values;
  if (count >= kGroup) {
    for (int i = 0; i < kGroupVectors; ++i) values.v[i] = _mm256_loadu_ps(at + i * kLanes);
    return values;
  }
  alignas(32) float padded[kGroup] = {};
  if (count > 0) memcpy(padded, at, static_cast<size_t>(count) * sizeof(float));
  for (int i = 0; i < kGroupVectors; ++i) values.v[i] = _mm256_load_ps(padded + i * kLanes);
  return values;
}

inline __m256 partner4(__m256 v) { return _mm256_permute2f128_ps(v, v, 1); }
inline __m256 partner2(__m256 v) { return _mm256_permute_ps(v, 0x4E); }
inline __m256 partner1(__m256 v) { return _mm256_permute_ps(v, 0xB1); }

/// Each lane and its partner become their sum and difference.
template <__m256 (*partner)(__m256)>
inline __m256 butterfly(__m256 v, __m256 sign) {
  return _mm256_fmadd_ps(v, sign, partner(v));
}

/// Hadamard's matrix times the group.
inline void rotate(Values& values) {
  for (int distance = 1; distance < kGroupVectors; distance *= 2) {
    for (int i = 0; i < kGroupVectors; ++i) {
      if ((i & distance) != 0) continue;
      const __m256 a = values.v[i], b = values.v[i + distance];
      values.v[i] = _mm256_add_ps(a, b);
      values.v[i + distance] = _mm256_sub_ps(a, b);
    }
  }
  const __m256 halves = _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1);
  const __m256 quarters = _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1);
  const __m256 lanes = _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1);
  for (__m256& v : values.v) {
    v = butterfly<partner1>(butterfly<partner2>(butterfly<partner4>(v, halves), quarters), lanes);
  }
}

struct Quantised {
  __m256i v[kGroupVectors];  // int32 in [-127, 127]
  float scale;
};

inline int largest_of(__m256i v) {
  __m128i half = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4E));
  return _mm_cvtsi128_si32(_mm_max_epi32(half, _mm_shuffle_epi32(half, 0xB1)));
}

inline int sum_of(__m256i v) {
  __m128i half = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xB1)));
}

inline Quantised quantise(const Values& values) {
  const __m256i magnitude = _mm256_set1_epi32(0x7FFFFFFF);
  __m256i largest = _mm256_setzero_si256();
  for (const __m256& v : values.v) {
    largest = _mm256_max_epi32(largest, _mm256_and_si256(_mm256_castps_si256(v), magnitude));
  }
  const GroupScale group = group_scale(largest_of(largest));
  const __m256 factor = _mm256_set1_ps(group.factor);
  Quantised out;
  out.scale = group.scale;
  for (int i = 0; i < kGroupVectors; ++i) {
    out.v[i] = group.usable ? _mm256_cvtps_epi32(_mm256_mul_ps(values.v[i], factor))
                            : _mm256_setzero_si256();
  }
  return out;
}

/// The values as bytes, in an order of quads that is the packing instructions' and the same for
/// activations and weights.
struct Bytes {
  __m256i v[kGroup / kBytes];
};

inline Bytes bytes_of(const Quantised& values) {
  Bytes bytes;
  for (int i = 0; i < kGroup / kBytes; ++i) {
    const __m256i* v = values.v + 4 * i;
    bytes.v[i] = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
  }
  return bytes;
}

/// One row of a group of a tile.
inline void pack_tile_row(Values floats, int64_t row, uint8_t* group) {
  const __m256i sign = _mm256_set1_epi8(-128);  // adds 128
  rotate(floats);
  const Quantised values = quantise(floats);
  const Bytes bytes = bytes_of(values);
  for (int i = 0; i < kGroup / kBytes; ++i) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(group + row * kGroup + kBytes * i),
                        _mm256_xor_si256(bytes.v[i], sign));
  }
  memcpy(group + kTileRows * kGroup + row * int64_t{sizeof(float)}, &values.scale, sizeof(float));
}

void pack_tile(const float* rows, int64_t count, int64_t k, uint8_t* tile) {
  for (int64_t first = 0; first < k; first += kGroup, tile += Layout::kTileGroupBytes) {
    for (int64_t row = 0; row < kTileRows; ++row) {
      const int64_t left = row < count ? k - first : 0;
      pack_tile_row(load(row < count ? rows + row * k + first : rows, left), row, tile);
    }
  }
}

/// e to the power of each lane, to 2 units in the last place; beyond the range of normal values the
/// range's end.
inline __m256 exponential(__m256 x) {
  // The second operand is the result where one is no number.
  x = _mm256_max_ps(_mm256_set1_ps(-87), _mm256_min_ps(_mm256_set1_ps(88), x));
  const __m256 power = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p+0f)),
                                       _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 rest = _mm256_fnmadd_ps(power, _mm256_set1_ps(0x1.62e400p-1f), x);
  rest = _mm256_fnmadd_ps(power, _mm256_set1_ps(0x1.7f7d1cp-20f), rest);
  constexpr float kFactors[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1, 1};  // Taylor's
  __m256 sum = _mm256_set1_ps(1.0f / 720);
  for (const float factor : kFactors) sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(factor));
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(power), _mm256_set1_epi32(127));
  return _mm256_mul_ps(sum, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

inline __m256 silu(__m256 x) {
  const __m256 negated = _mm256_sub_ps(_mm256_setzero_ps(), x);
  return _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1), exponential(negated)));
}

void pack_gated(const float* gate, const float* up, int64_t count, uint8_t* group) {
  for (int64_t row = 0; row < kTileRows; ++row) {
    const int64_t left = row < count ? kGroup : 0, at = row < count ? row * kGroup : 0;
    Values values = load(gate + at, left);
    const Values factors = load(up + at, left);
    for (int i = 0; i < kGroupVectors; ++i) {
      values.v[i] = _mm256_mul_ps(silu(values.v[i]), factors.v[i]);
    }
    pack_tile_row(values, row, group);
  }
}

void pack_panel_row(const float* values, int64_t count, int64_t row, uint8_t* panel) {
  for (int64_t first = 0; first < count; first += kGroup, panel += Layout::kPanelGroupBytes) {
    Values floats = load(values + first, count - first);
    rotate(floats);
    Quantised group = quantise(floats);
    group.scale /= static_cast<float>(kGroup);
    const Bytes bytes = bytes_of(group);
    __m256i sum = group.v[0];
    for (int i = 1; i < kGroupVectors; ++i) sum = _mm256_add_epi32(sum, group.v[i]);
    store_panel_row<Layout>(&bytes, group.scale, -128 * sum_of(sum), row, panel);
  }
}

void pack_panel_rows(const float* values, int64_t stride, int64_t count, int64_t row,
                     uint8_t* panel) {
  for (int64_t i = 0; i < kPackedRows; ++i) {
    pack_panel_row(values + i * stride, count, row + i, panel);
  }
}

/// sum += the products of four neighbours, a's unsigned by b's signed, in each lane. As assembly:
/// g++ 12 copies every sum of the intrinsic's.
inline void add_products(__m256i& sum, __m256i a, __m256i b) {
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
}

inline __m256i broadcast_quad(const uint8_t* at) {
  int32_t quad;
  memcpy(&quad, at, sizeof quad);
  return _mm256_set1_epi32(quad);
}

inline __m256i load_bytes(const uint8_t* at) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
}

inline __m256 load_floats(const uint8_t* at) {
  return _mm256_loadu_ps(reinterpret_cast<const float*>(at));
}

// A tile's sums of 16 columns, two vectors of weights and one of activations fit the 16 registers;
// sums over groups wait in the first-level cache.
constexpr int kVectors = 2;
constexpr int64_t kColumns = kVectors * kLanes;

/// total += a group's products by kColumns of the panel's rows. `panel` and `scales` point to the
/// first of them.
inline void multiply_columns(const uint8_t* tile, const uint8_t* panel, const uint8_t* scales,
                             float* total) {
  const uint8_t* starts = scales + kPanelRows * int64_t{sizeof(float)};
  __m256i sum[kTileRows][kVectors];
  TSP_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    const __m256i start = load_bytes(starts + kBytes * v);
    TSP_UNROLL
    for (int row = 0; row < kTileRows; ++row) sum[row][v] = start;
  }
  for (int64_t quad = 0; quad < kQuads; ++quad) {
    __m256i weights[kVectors];
    TSP_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      weights[v] = load_bytes(panel + 4 * kPanelRows * quad + kBytes * v);
    }
    TSP_UNROLL
    for (int row = 0; row < kTileRows; ++row) {
      const __m256i input = broadcast_quad(tile + row * kGroup + 4 * quad);
      TSP_UNROLL
      for (int v = 0; v < kVectors; ++v) add_products(sum[row][v], input, weights[v]);
    }
  }
  const uint8_t* input_scales = tile + kTileRows * kGroup;
  TSP_UNROLL
  for (int row = 0; row < kTileRows; ++row) {
    float input_scale;
    memcpy(&input_scale, input_scales + 4 * row, sizeof input_scale);
    TSP_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      float* at = total + row * kPanelRows + v * kLanes;
      const __m256 scale =
          _mm256_mul_ps(_mm256_set1_ps(input_scale), load_floats(scales + kBytes * v));
      _mm256_store_ps(at,
                      _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[row][v]), scale, _mm256_load_ps(at)));
    }
  }
}

void multiply(const uint8_t* tile, const uint8_t* panel, const Part& part, float* c,
              int64_t c_stride) {
  alignas(32) float total[kTileRows * kPanelRows] = {};
  const auto bytes = static_cast<size_t>(part.columns) * sizeof(float);
  for (int64_t row = 0; part.add && row < part.rows; ++row) {
    memcpy(total + row * kPanelRows, c + row * c_stride, bytes);
  }
  for (int64_t group = 0; group < part.groups; ++group) {
    for (int64_t column = 0; column < kPanelRows; column += kColumns) {
      multiply_columns(tile, panel + 4 * column, panel + kPanelRows * kGroup + 4 * column,
                       total + column);
    }
    tile += Layout::kTileGroupBytes;
    panel += Layout::kPanelGroupBytes;
  }
  for (int64_t row = 0; row < part.rows; ++row) {
    memcpy(c + row * c_stride, total + row * kPanelRows, bytes);
  }
}

/// ggml's functions read the weights.
void (*no_reader(ggml_type))(const void*, float*, int64_t) { return nullptr; }

/// Squares are added in double precision, as ggml does.
void normalise(const float* x, const float* factors, int64_t count, float eps, float* y) {
  __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
  int64_t at = 0;
  for (; at + kLanes <= count; at += kLanes) {
    const __m256 values = _mm256_loadu_ps(x + at);
    const __m256 squares = _mm256_mul_ps(values, values);
    low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(squares)));
    high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(squares, 1)));
  }
  alignas(32) double parts[4];
  _mm256_store_pd(parts, _mm256_add_pd(low, high));
  double sum = parts[0] + parts[1] + parts[2] + parts[3];
  for (; at < count; ++at) sum += double{x[at] * x[at]};
  const auto mean = static_cast<float>(sum / static_cast<double>(count));
  const float scale = 1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(mean + eps)));
  for (int64_t i = 0; i < count; ++i) {
    const float value = x[i] * scale;
    y[i] = factors != nullptr ? value * factors[i] : value;
  }
}

}  // namespace

extern const Kernels kAvxVnni;
const Kernels kAvxVnni = {"int8",
                          "AVX-VNNI",
                          kTileRows,
                          kPanelRows,
                          Layout::kTileGroupBytes,
                          Layout::kPanelGroupBytes,
                          no_reader,
                          pack_tile,
                          pack_gated,
                          pack_panel_rows,
                          multiply,
                          normalise};

}  // namespace tsp::ggml_adapter::panels
