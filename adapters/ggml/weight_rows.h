// SPDX-License-Identifier: MIT
// Rows of weights and of activations as bf16: what oneDNN multiplies.
#pragma once

#include <cstdint>

#include "ggml.h"

namespace tsp::ggml_adapter {

// On x86-64 these need AVX512-BF16, which is where OneDnn::has_bf16() is true.

/// Rounded to nearest, ties to even. A NaN stays one.
void to_bf16(const float* in, uint16_t* out, int64_t count);

/// Dequantises `count` values of a type, whole blocks, and rounds them.
using ReadBf16 = void (*)(const void* packed, uint16_t* out, int64_t count);

/// What ggml's to_float and then to_bf16() give, several times as fast (a sum inside to_float may
/// have been rounded once more). Null for types without a way of their own.
ReadBf16 direct_read_bf16(ggml_type type);

}  // namespace tsp::ggml_adapter
