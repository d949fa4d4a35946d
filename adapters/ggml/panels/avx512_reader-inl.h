// SPDX-License-Identifier: MIT
// Readers of a weight's blocks in f32 for kernels on AVX-512.
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

namespace tsp::ggml_adapter {
namespace {

inline void store(__m512 values, float* out) { _mm512_storeu_ps(out, values); }

}  // namespace
}  // namespace tsp::ggml_adapter

#define TSP_READER
#include "adapters/ggml/weight_blocks-inl.h"
