// SPDX-License-Identifier: MIT
// What the kernels on AVX-512 share: groups of f32 values in registers, SwiGLU, and the result's
// cache lines. Everything is in an anonymous namespace: a unit never shares code with one of other
// flags.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "adapters/ggml/panels/kernels.h"

#define TSP_UNROLL _Pragma("GCC unroll 32")

namespace tsp::ggml_adapter::panels {
namespace {

constexpr int kLanes = 16;
constexpr int kGroupVectors = kGroup / kLanes;  // of f32

inline __mmask16 mask_of(int64_t columns, int vector) {
  const int64_t left = columns - vector * kLanes;
  return static_cast<__mmask16>(left >= kLanes ? 0xFFFF : left > 0 ? (1u << left) - 1 : 0);
}

/// A group's values, as far as there are, and zeros.
struct Values {
  __m512 v[kGroupVectors];
};

inline Values load(const float* at, int64_t count) {
  Values values;
  TSP_UNROLL
  for (int i = 0; i < kGroupVectors; ++i) {
    values.v[i] = _mm512_maskz_loadu_ps(mask_of(count, i), at + i * kLanes);
  }
  return values;
}

/// A group of activations that will be read soon, so that it is not waited for.
inline void prefetch_group(const float* at) {
  TSP_UNROLL
  for (int i = 0; i < kGroupVectors; ++i) __builtin_prefetch(at + i * kLanes);
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

inline Values gated(Values gate, const Values& up) {
  TSP_UNROLL
  for (int i = 0; i < kGroupVectors; ++i) gate.v[i] = _mm512_mul_ps(silu(gate.v[i]), up.v[i]);
  return gate;
}

/// Squares are added in double precision, as ggml does.
void normalise(const float* x, const float* factors, int64_t count, float eps, float* y) {
  __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
  for (int64_t at = 0; at < count; at += kLanes) {
    const __m512 values = _mm512_maskz_loadu_ps(mask_of(count - at, 0), x + at);
    const __m512 squares = _mm512_mul_ps(values, values);
    low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(squares)));
    const __m512d upper = _mm512_castps_pd(squares);
    high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd(upper, 1))));
  }
  const double sum = _mm512_reduce_add_pd(_mm512_add_pd(low, high));
  const auto mean = static_cast<float>(sum / static_cast<double>(count));
  const __m128 root = _mm_sqrt_ss(_mm_set_ss(mean + eps));
  const __m512 scale = _mm512_set1_ps(1.0f / _mm_cvtss_f32(root));
  for (int64_t at = 0; at < count; at += kLanes) {
    const __mmask16 mask = mask_of(count - at, 0);
    __m512 values = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + at), scale);
    if (factors != nullptr) {
      values = _mm512_mul_ps(values, _mm512_maskz_loadu_ps(mask, factors + at));
    }
    _mm512_mask_storeu_ps(y + at, mask, values);
  }
}

/// The cache lines that multiply() will write, fetched while it computes: rows of the result are
/// pages apart, and stores that miss would hold it up.
inline void prefetch_result(const panels::Part& part, float* c, int64_t c_stride) {
  for (int64_t row = 0; row < part.rows; ++row) {
    const float* at = c + row * c_stride;
    for (int64_t column = 0; column < part.columns; column += kLanes) {
      __builtin_prefetch(at + column, 1);
    }
    __builtin_prefetch(at + part.columns - 1, 1);
  }
}

/// What c holds of a part, to rows of kColumns values; zeros beside it.
template <int kRows, int kColumns>
void load_part(const panels::Part& part, const float* c, int64_t c_stride, float* values) {
  for (int64_t row = 0; row < kRows; ++row, values += kColumns) {
    const bool within = row < part.rows;
    TSP_UNROLL
    for (int v = 0; v < kColumns / kLanes; ++v) {
      const __mmask16 mask = within ? mask_of(part.columns, v) : __mmask16{0};
      _mm512_storeu_ps(values + v * kLanes,
                       _mm512_maskz_loadu_ps(mask, within ? c + row * c_stride + v * kLanes : c));
    }
  }
}

template <int kColumns>
void store_part(const panels::Part& part, const float* values, float* c, int64_t c_stride) {
  for (int64_t row = 0; row < part.rows; ++row, values += kColumns) {
    TSP_UNROLL
    for (int v = 0; v < kColumns / kLanes; ++v) {
      _mm512_mask_storeu_ps(c + row * c_stride + v * kLanes, mask_of(part.columns, v),
                            _mm512_loadu_ps(values + v * kLanes));
    }
  }
}

/// The sums that multiply() begins with: what c holds of the part, or zeros.
template <int kRows, int kVectors>
__attribute__((always_inline)) inline void begin_sums(__m512 (&sum)[kRows][kVectors],
                                                      const panels::Part& part, const float* c,
                                                      int64_t c_stride) {
  TSP_UNROLL
  for (int row = 0; row < kRows; ++row) {
    TSP_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const bool from_c = part.add && row < part.rows;
      sum[row][v] = _mm512_maskz_loadu_ps(from_c ? mask_of(part.columns, v) : __mmask16{0},
                                          from_c ? c + row * c_stride + v * kLanes : c);
    }
  }
}

template <int kRows, int kVectors>
__attribute__((always_inline)) inline void store_sums(const __m512 (&sum)[kRows][kVectors],
                                                      const panels::Part& part, float* c,
                                                      int64_t c_stride) {
  TSP_UNROLL
  for (int row = 0; row < kRows; ++row) {
    TSP_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      if (row < part.rows) {
        _mm512_mask_storeu_ps(c + row * c_stride + v * kLanes, mask_of(part.columns, v),
                              sum[row][v]);
      }
    }
  }
}

}  // namespace
}  // namespace tsp::ggml_adapter::panels
