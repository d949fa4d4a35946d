// SPDX-License-Identifier: MIT
// A row of one view into a row of another, bits unchanged.
#pragma once

#include <cstring>

#include "core/dtype.h"
#include "core/layout.h"

namespace tsp::cpu {

/// Copies the row at `from` elements of `in` to `to` of `out`; from < 0: zeros.
inline void copy_row(const tsp_tensor_t& in, int64_t from, const tsp_tensor_t& out, int64_t to) {
  const int64_t bytes = dtype_bytes(out.dtype);
  char* const row = static_cast<char*>(out.data) + to * bytes;
  const char* const source = from < 0 ? nullptr : static_cast<const char*>(in.data) + from * bytes;
  const auto size = static_cast<size_t>(bytes);
  if (out.dim_stride == 1 && (source == nullptr || in.dim_stride == 1)) {
    const size_t length = static_cast<size_t>(out.dim) * size;
    if (source == nullptr) {
      std::memset(row, 0, length);
    } else {
      std::memcpy(row, source, length);
    }
    return;
  }
  for (int64_t d = 0; d < out.dim; ++d) {
    char* const at = row + d * out.dim_stride * bytes;
    if (source == nullptr) {
      std::memset(at, 0, size);
    } else {
      std::memcpy(at, source + d * in.dim_stride * bytes, size);
    }
  }
}

}  // namespace tsp::cpu
