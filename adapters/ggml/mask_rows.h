// SPDX-License-Identifier: MIT
// The rows of an attention mask of ggml, F16 [n_kv, rows] in host memory.
#pragma once

#include <cstdint>

#include "ggml.h"

namespace tsp::ggml_adapter {

inline constexpr ggml_fp16_t kVisible = 0x0000;  // +0.0
inline constexpr ggml_fp16_t kHidden = 0xFC00;   // -inf

inline const ggml_fp16_t* row_of(const ggml_tensor& mask, int64_t row) {
  const char* base = static_cast<const char*>(mask.data);
  return reinterpret_cast<const ggml_fp16_t*>(base + static_cast<size_t>(row) * mask.nb[1]);
}

}  // namespace tsp::ggml_adapter
