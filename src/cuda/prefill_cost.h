// SPDX-License-Identifier: MIT
// TSP_WHEN_PAYS on a GPU, by what the host knows: plain C++, so that g++ tests it.
#pragma once

#include <cstdint>

namespace tsp::cuda {

/// Whatever the shape, shorter sequences and chunks are attended to exactly.
inline constexpr int32_t kMinPayingKeys = 4096;
inline constexpr int32_t kMinPayingQueries = 1024;

/// To score the window of 128 queries twice, at less than the rate of attention, takes as long as
/// attention of this many.
inline constexpr int32_t kScoredQueries = 512;
/// The launches and what else does not grow take about 0.1 ms. Choosing pays once exact attention
/// multiplies this much besides (GFLOP); heads of 64 channels do so more slowly. Five shapes of 12
/// to 32 heads, whole prompts and chunks, a quarter kept, left-out rows local: one H200,
/// 2026-11-27.
inline constexpr double kPayingGflop128 = 62;
inline constexpr double kPayingGflop64 = 37;

/// The share of exact attention that is saved where a share `keep` of the tokens stays, at most
/// what the constants were found with: a quarter kept.
inline double saved_share(float keep) {
  const double most = 1 - 0.25 * 0.25, saved = 1 - static_cast<double>(keep) * keep;
  return saved < most ? saved / most : 1;
}

/// `keep`: 0 where coverage decides.
inline bool prefill_pays(int32_t q_len, int32_t k_len, int64_t q_heads, int64_t head_dim,
                         float keep) {
  if (k_len < kMinPayingKeys || q_len < kMinPayingQueries) return false;
  const double pairs = static_cast<double>(q_len - kScoredQueries) * k_len -
                       0.5 * q_len * static_cast<double>(q_len);
  const double gflop = 4e-9 * pairs * static_cast<double>(q_heads * head_dim) * saved_share(keep);
  return gflop >= (head_dim == 64 ? kPayingGflop64 : kPayingGflop128);
}
/// By shape alone.
inline bool prefill_may_pay(int32_t q_len, int32_t k_len, int64_t q_heads, int64_t head_dim) {
  return prefill_pays(q_len, k_len, q_heads, head_dim, 0);
}

}  // namespace tsp::cuda
