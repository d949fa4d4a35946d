// SPDX-License-Identifier: MIT
// The rows of a tensor, without a function of ggml's: a plugin has none but its host's.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ggml.h"

namespace tsp::ggml_adapter {

inline int64_t rows_of(const ggml_tensor& tensor) {
  return tensor.ne[1] * tensor.ne[2] * tensor.ne[3];
}

/// Rows of ne[0] elements of f32, one after the other.
inline bool is_dense_f32(const ggml_tensor& tensor) {
  if (tensor.type != GGML_TYPE_F32 || tensor.nb[0] != sizeof(float)) return false;
  size_t bytes = sizeof(float);
  for (int axis = 0; axis < GGML_MAX_DIMS; ++axis) {
    if (tensor.ne[axis] > 1 && tensor.nb[axis] != bytes) return false;
    bytes *= static_cast<size_t>(tensor.ne[axis]);
  }
  return true;
}

}  // namespace tsp::ggml_adapter
