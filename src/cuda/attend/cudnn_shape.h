// SPDX-License-Identifier: MIT
// The key of a cuDNN plan: plain C++, so that a machine without CUDA tests it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tokensparse/types.h"

namespace tsp::cuda {

/// Everything that a cuDNN plan is built for. Strides in elements.
struct CudnnShape {
  int32_t dtype = TSP_BF16;
  int32_t head_dim = 128;
  int32_t batch = 1;
  int32_t q_heads = 1;
  int32_t kv_heads = 1;
  int32_t q_len = 0;   // longest
  int32_t kv_len = 0;  // longest
  bool with_lse = false;
  /// Lengths are on the device, and q_len and kv_len only bound them. Lengths that the host knows
  /// need no padding mask: dense attention of 32,768 tokens is 5 % (32/8 heads, D 128) and 11 %
  /// (14/2 heads, D 64) faster without (H100, 2026-11-25).
  bool padded = true;
  float scale = 0.f;
  struct Strides {
    int64_t batch = 0;
    int64_t head = 0;
    int64_t token = 0;
    bool operator==(const Strides&) const = default;
  } q, k, v, out, lse;

  bool operator==(const CudnnShape&) const = default;
};
/// For a hash table of shapes.
size_t hash_of(const CudnnShape& shape);

}  // namespace tsp::cuda
