// SPDX-License-Identifier: MIT
// TSP_WHEN_PAYS on a GPU, by what the host knows: plain C++, so that g++ tests it.
#pragma once

#include <cstdint>

namespace tsp::cuda {

/// Whatever the shape, shorter sequences and chunks are attended to exactly: the window costs as
/// much to score as their rows save.
inline constexpr int32_t kMinPayingKeys = 4096;
inline constexpr int32_t kMinPayingQueries = 1024;

/// Choosing, gathering and the launches take about 0.1 ms besides, however few the heads are. That
/// pays once exact attention multiplies this much (GFLOP); heads of 64 channels do so more slowly.
inline constexpr double kPayingGflop128 = 100;
inline constexpr double kPayingGflop64 = 60;

inline bool prefill_pays(int32_t q_len, int32_t k_len, int64_t q_heads, int64_t head_dim) {
  if (k_len < kMinPayingKeys || q_len < kMinPayingQueries) return false;
  const double pairs = static_cast<double>(q_len) * (k_len - 0.5 * q_len);
  const double gflop = 4e-9 * pairs * static_cast<double>(q_heads * head_dim);
  return gflop >= (head_dim == 64 ? kPayingGflop64 : kPayingGflop128);
}

}  // namespace tsp::cuda
