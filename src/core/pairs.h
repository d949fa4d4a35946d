// SPDX-License-Identifier: MIT
// How many query-key pairs attention computes, in closed form.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define TSP_PAIRS_INLINE __host__ __device__ inline
#else
#define TSP_PAIRS_INLINE inline
#endif

namespace tsp {

/// The sum over p in [first, last) of min(p + 1, most).
TSP_PAIRS_INLINE int64_t clipped_sum(int64_t first, int64_t last, int64_t most) {
  const int64_t low = first < most ? first : most;
  const int64_t high = last < most ? last : most;
  return (high * (high + 1) - low * (low + 1)) / 2 + (last - high - (first - low)) * most;
}

/// Pairs of the queries [q_pos, k_len), of which the list entries [first, kept) keep their turn and
/// see the entries before them, the others `near` keys, as the kept ones would have if left out:
/// `far` is the first of those entries whose position is at least `near`, `nearer` the sum of
/// position + 1 over the ones before it.
TSP_PAIRS_INLINE int64_t pairs_of_list(int64_t q_pos, int64_t k_len, int64_t near, int64_t first,
                                       int64_t far, int64_t kept, int64_t nearer) {
  return clipped_sum(q_pos, k_len, near) + clipped_sum(first, kept, kept) - (kept - far) * near -
         nearer;
}

}  // namespace tsp
#undef TSP_PAIRS_INLINE
