// SPDX-License-Identifier: MIT
// What an attention mask of ggml says about the keys that each query row sees. The mask is the only
// truth: the cache is padded, may hold several sequences, and no position reaches the operation.
#pragma once

#include <cstdint>

struct ggml_tensor;

namespace tsp::ggml_adapter {

enum class MaskKind {
  kPrefix,     // row i of Tq sees exactly the keys 0 .. Tk - Tq + i
  kNotFirst,   // a row does not see key 0: a sliding window, or a later sequence of a shared cache
  kNotPrefix,  // holes, equal rows (no causality), values other than 0 and -inf
};

struct CausalMask {
  MaskKind kind;
  int32_t k_len;  // Tk, the keys that the last row sees; 0 unless kPrefix
};

/// `mask` is F16 [n_kv, rows] in host memory, rows >= 1. Reads all of it: nothing else rules out
/// that one row among many sees something else.
CausalMask read_causal_mask(const ggml_tensor& mask);

}  // namespace tsp::ggml_adapter
