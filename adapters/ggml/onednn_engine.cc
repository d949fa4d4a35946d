// SPDX-License-Identifier: MIT
#include "adapters/ggml/onednn_engine.h"

#include <algorithm>
#include <vector>

#include "adapters/ggml/weight_rows.h"

namespace tsp::ggml_adapter {
namespace {

/// Rows of k elements that a thread takes at once: enough to make taking them cheap.
int64_t rows_at_once(int64_t k) { return std::max(int64_t{1}, (int64_t{1} << 16) / k); }

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

void OneDnnEngine::read_weights(const PackedRows& rows, void* out) {
  const ReadBf16 direct = bf16_ ? direct_read_bf16(rows.type) : nullptr;
  const int64_t k = rows.k, at_once = rows_at_once(k);
  library_->parallel(ceil_div(rows.count, at_once), [&](int64_t part) {
    thread_local std::vector<float> scratch;
    if (bf16_ && direct == nullptr) scratch.resize(static_cast<size_t>(k));
    const int64_t end = std::min(rows.count, (part + 1) * at_once);
    for (int64_t row = part * at_once; row < end; ++row) {
      const char* packed =
          static_cast<const char*>(rows.data) + static_cast<size_t>(row) * rows.row_bytes;
      if (direct != nullptr) {
        direct(packed, static_cast<uint16_t*>(out) + row * k, k);
      } else if (bf16_) {
        rows.to_float(packed, scratch.data(), k);
        to_bf16(scratch.data(), static_cast<uint16_t*>(out) + row * k, k);
      } else {
        rows.to_float(packed, static_cast<float*>(out) + row * k, k);
      }
    }
  });
}

void OneDnnEngine::read_inputs(const float* rows, int64_t count, int64_t k, void* out) {
  const int64_t at_once = rows_at_once(k);
  library_->parallel(ceil_div(count, at_once), [&](int64_t part) {
    const int64_t begin = part * at_once, end = std::min(count, begin + at_once);
    to_bf16(rows + begin * k, static_cast<uint16_t*>(out) + begin * k, (end - begin) * k);
  });
}

}  // namespace tsp::ggml_adapter
