// SPDX-License-Identifier: MIT
// Products of pairs of bf16, summed in f32 (VDPBF16PS, for which subnormal values are zero).
// Built with flags of its own: includes no header with inline functions of linkage, which another
// unit might end up calling.
#include "adapters/ggml/panels/avx512_bf16-inl.h"

namespace tsp::ggml_adapter::panels {
namespace {

constexpr int kTileRows = 12;
constexpr int kVectors = kBf16PanelRows / kLanes;

/// sum += the products of two neighbours, in each lane. As assembly: g++ 12 copies every sum of the
/// intrinsic's.
inline void add_products(__m512& sum, __m512i a, __m512i b) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}

inline __m512i broadcast_pair(const uint8_t* at) {
  int32_t pair;
  memcpy(&pair, at, sizeof pair);
  return _mm512_set1_epi32(pair);
}

// The sums fit the 32 registers, beside one vector of activations and two of weights.
void multiply(const uint8_t* tile, const uint8_t* panel, const Part& part, float* c,
              int64_t c_stride) {
  prefetch_result(part, c, c_stride);
  __m512 sum[kTileRows][kVectors];
  begin_sums(sum, part, c, c_stride);
  for (int64_t group = 0; group < part.groups; ++group, tile += kTileRows * kRowBytes) {
    for (int pair = 0; pair < kPairs; ++pair, panel += 4 * kBf16PanelRows) {
      __m512i weights[kVectors];
      TSP_UNROLL
      for (int v = 0; v < kVectors; ++v) weights[v] = _mm512_loadu_si512(panel + 64 * v);
      TSP_UNROLL
      for (int row = 0; row < kTileRows; ++row) {
        const __m512i input = broadcast_pair(tile + row * kRowBytes + 4 * pair);
        TSP_UNROLL
        for (int v = 0; v < kVectors; ++v) add_products(sum[row][v], input, weights[v]);
      }
    }
  }
  store_sums(sum, part, c, c_stride);
}

}  // namespace

extern const Kernels kAvx512Bf16;
const Kernels kAvx512Bf16 = bf16_table<kTileRows>("AVX512-BF16", multiply);

}  // namespace tsp::ggml_adapter::panels
