// SPDX-License-Identifier: MIT
#include "adapters/ggml/causal_mask.h"

#include <algorithm>

#include "ggml.h"

namespace tsp::ggml_adapter {
namespace {

constexpr ggml_fp16_t kVisible = 0x0000;  // +0.0
constexpr ggml_fp16_t kHidden = 0xFC00;   // -inf
constexpr int64_t kFullRowStride = 64;

const ggml_fp16_t* row_of(const ggml_tensor& mask, int64_t row) {
  const char* base = static_cast<const char*>(mask.data);
  return reinterpret_cast<const ggml_fp16_t*>(base + static_cast<size_t>(row) * mask.nb[1]);
}

bool all_equal(const ggml_fp16_t* first, const ggml_fp16_t* last, ggml_fp16_t value) {
  // Without an early exit the compiler vectorises it.
  bool equal = true;
  for (; first != last; ++first) equal &= *first == value;
  return equal;
}

bool is_prefix(const ggml_fp16_t* row, int64_t visible, int64_t n_kv, bool in_full) {
  if (in_full) {
    return all_equal(row, row + visible, kVisible) && all_equal(row + visible, row + n_kv, kHidden);
  }
  return row[visible - 1] == kVisible &&
         (visible == n_kv || (row[visible] == kHidden && row[n_kv - 1] == kHidden));
}

}  // namespace

CausalMask read_causal_mask(const ggml_tensor& mask) {
  const int64_t n_kv = mask.ne[0], rows = mask.ne[1];
  const ggml_fp16_t* last = row_of(mask, rows - 1);
  const int64_t k_len =
      std::find_if(last, last + n_kv, [](ggml_fp16_t m) { return m != 0; }) - last;
  for (int64_t row = 0; row < rows; ++row) {
    if (*row_of(mask, row) == kHidden) return {MaskKind::kNotFirst, 0};
  }
  if (k_len < rows) return {MaskKind::kNotPrefix, 0};
  for (int64_t row = 0; row < rows; ++row) {
    const bool in_full = row % kFullRowStride == 0 || row == rows - 1;
    if (*row_of(mask, row) != kVisible ||
        !is_prefix(row_of(mask, row), k_len - rows + row + 1, n_kv, in_full)) {
      return {MaskKind::kNotPrefix, 0};
    }
  }
  return {MaskKind::kPrefix, static_cast<int32_t>(k_len)};
}

}  // namespace tsp::ggml_adapter
