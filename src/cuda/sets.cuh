// SPDX-License-Identifier: MIT
// Reading index sets on the device: lengths, entries, search. No list means every token.
#pragma once

#include "cuda/views.h"

namespace tsp::cuda {

__device__ __forceinline__ int32_t num_kept(const Sets& sets, int32_t k_len) {
  return sets.kept == nullptr ? k_len : *sets.kept;
}
__device__ __forceinline__ const int32_t* list_of(const Sets& sets, int32_t set) {
  return sets.indices == nullptr ? nullptr : sets.indices + set * sets.set_stride;
}
__device__ __forceinline__ int32_t position_of(const int32_t* list, int32_t entry) {
  return list == nullptr ? entry : list[entry];
}

/// First entry of list[0, n) that is >= position, by one thread.
__device__ __forceinline__ int32_t lower_bound(const int32_t* list, int32_t n, int32_t position) {
  if (list == nullptr) return min(position, n);
  int32_t first = 0;
  while (n > 0) {
    const int32_t half = n / 2;
    if (list[first + half] < position) {
      first += half + 1;
      n -= half + 1;
    } else {
      n = half;
    }
  }
  return first;
}

/// lower_bound by a whole warp, 32 probes at a time; every lane gets the result.
__device__ __forceinline__ int32_t warp_lower_bound(const int32_t* list, int32_t n,
                                                    int32_t position) {
  if (list == nullptr) return min(position, n);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int32_t first = 0;
  while (n > 0) {
    const int32_t step = (n + 31) / 32;
    const int32_t probe = lane * step + step - 1;  // the last entry of the lane's stretch
    const bool below = probe < n && list[first + probe] < position;
    const int32_t whole = __popc(__ballot_sync(~0u, below));
    first += whole * step;
    n = min(step - 1, n - whole * step);  // its last entry is known, or lies beyond
  }
  return first;
}

}  // namespace tsp::cuda
