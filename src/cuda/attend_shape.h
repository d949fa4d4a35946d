// SPDX-License-Identifier: MIT
// The key of a cuDNN plan and the sizes that decide it: plain C++, so that a machine without CUDA
// tests it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tokensparse/types.h"

namespace tsp::cuda {

/// Everything that a cuDNN plan is built for. Strides in elements.
struct AttendShape {
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

  bool operator==(const AttendShape&) const = default;
};
/// For a hash table of shapes.
size_t hash_of(const AttendShape& shape);

/// Plans take some 0.4 s to build (H200, 2026-11), so lengths of our own buffers go up to the next
/// of eight steps between powers of two: at most 1/8 longer.
constexpr int32_t length_bucket(int32_t len) {
  int32_t step = 128;
  while (step * 16 <= len) step *= 2;
  return static_cast<int32_t>((int64_t{len} + step - 1) / step * step);
}

/// Units gathered at once: as many as the budget holds, at least one, balanced over the groups.
int32_t units_per_group(int32_t units, int64_t unit_bytes, int64_t budget_bytes);

}  // namespace tsp::cuda
