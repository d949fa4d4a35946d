// SPDX-License-Identifier: MIT
#include "adapters/ggml/weight_rows.h"

#ifdef __x86_64__

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in the header of g++ 12 itself
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <string.h>

#define TSP_BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,f16c")))

namespace tsp::ggml_adapter {
namespace {

TSP_BF16 inline void store(__m512 values, uint16_t* out) {
  const __m256bh rounded = _mm512_cvtneps_pbh(values);
  memcpy(out, &rounded, sizeof rounded);
}

}  // namespace
}  // namespace tsp::ggml_adapter

#define TSP_READER TSP_BF16
#include "adapters/ggml/weight_blocks-inl.h"

namespace tsp::ggml_adapter {
namespace {

TSP_BF16 void read_f16(const void* packed, uint16_t* out, int64_t count) {
  const auto* values = static_cast<const uint16_t*>(packed);
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) store(_mm512_cvtph_ps(load32(values + i)), out + i);
  for (; i < count; ++i) {
    const float value = _cvtsh_ss(values[i]);
    to_bf16(&value, out + i, 1);
  }
}

}  // namespace

TSP_BF16 void to_bf16(const float* in, uint16_t* out, int64_t count) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) store(_mm512_loadu_ps(in + i), out + i);
  if (i == count) return;
  const auto rest = static_cast<__mmask16>((1u << (count - i)) - 1);
  uint16_t last[16];
  store(_mm512_maskz_loadu_ps(rest, in + i), last);
  memcpy(out + i, last, static_cast<size_t>(count - i) * sizeof *out);
}

ReadBf16 direct_read_bf16(ggml_type type) {
  return type == GGML_TYPE_F16 ? read_f16 : block_reader<uint16_t>(type);
}

}  // namespace tsp::ggml_adapter

#else  // no processor of another kind multiplies bf16 here so far

#include <bit>

namespace tsp::ggml_adapter {

void to_bf16(const float* in, uint16_t* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const auto bits = std::bit_cast<uint32_t>(in[i]);
    const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    const bool nan = (bits & 0x7FFFFFFF) > 0x7F800000;
    out[i] = static_cast<uint16_t>(nan ? (bits >> 16) | 0x40 : rounded);
  }
}

ReadBf16 direct_read_bf16(ggml_type) { return nullptr; }

}  // namespace tsp::ggml_adapter

#endif
