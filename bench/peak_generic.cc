// SPDX-License-Identifier: MIT
#include <cstring>
#include <string>

#include "bench/peak.h"

namespace tsp::bench {
namespace {

typedef float Vector __attribute__((vector_size(16)));
constexpr int kAccumulators = 12;  // latency 4 times 2 units, and some to spare

}  // namespace

double peak_generic(int64_t rounds, float* sink) {
  Vector acc[kAccumulators];
  for (int i = 0; i < kAccumulators; ++i) acc[i] = Vector{} + static_cast<float>(i);
  const Vector a = Vector{} + *sink;
  const Vector b = Vector{} + (1 - *sink);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kAccumulators; ++i) acc[i] = acc[i] * a + b;
  }
  Vector sum{};
  for (const Vector& value : acc) sum += value;
  *sink += sum[0];
  return static_cast<double>(rounds) * kAccumulators * 4 * 2;
}

PeakKernel f32_peak_kernel(const char* isa) {
#if defined(__x86_64__)
  const std::string name = isa;
  if (name == "avx2") return peak_avx2;
  if (name.rfind("avx512", 0) == 0 || name.rfind("amx", 0) == 0) return peak_avx512;
#else
  (void)isa;
#endif
  return peak_generic;
}

PeakKernel bf16_peak_kernel(const char* isa) {
#if defined(__x86_64__)
  if (std::strcmp(isa, "avx512_bf16") == 0) return peak_avx512_bf16;
  if (std::strcmp(isa, "amx_bf16") == 0) return peak_amx_bf16;
#else
  (void)isa;
#endif
  return nullptr;
}

}  // namespace tsp::bench
