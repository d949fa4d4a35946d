// SPDX-License-Identifier: MIT
// Built with flags of its own: includes no header with inline functions of linkage, which another
// unit might end up calling.
#include "adapters/ggml/panels/avx512_int8-inl.h"

namespace tsp::ggml_adapter::panels {
namespace {

constexpr int kVectors = kPanelRows / kLanes;
constexpr int64_t kTileRows = VnniLayout::kTileRows;

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

// The sums of a group and those over groups all fit the 32 registers, beside one vector of
// activations and two of weights.
void multiply(const uint8_t* tile, const uint8_t* panel, const Part& part, float* c,
              int64_t c_stride) {
  prefetch_result(part, c, c_stride);
  __m512 total[kTileRows][kVectors];
  begin_sums(total, part, c, c_stride);
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
  store_sums(total, part, c, c_stride);
}

}  // namespace

extern const Kernels kAvx512Vnni;
const Kernels kAvx512Vnni = int8_table<VnniLayout>("AVX512-VNNI", multiply);

}  // namespace tsp::ggml_adapter::panels
