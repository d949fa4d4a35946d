// SPDX-License-Identifier: MIT
// Tiles of our own attention kernel: plain C++, so that g++ tests them.
#pragma once

#include <cstddef>

namespace tsp::cuda {

constexpr int kAttendWarps = 4;
constexpr int kAttendThreads = 32 * kAttendWarps;
constexpr int kAttendTileQ = 128;  // 32 rows a warp: a K or V fragment serves two row tiles
constexpr int kAttendTileKv = 64;  // S of 32 x 64 and O of 32 x D fit 255 registers
constexpr int kAttendStages = 2;
constexpr int kAttendBlocksPerSm = 2;  // one block's softmax runs under the other's products
constexpr int kFlagRows = 128;         // rows that share a "V has a NaN or an infinity" flag

/// The rows that a set left out: tiles of as many (position, head) pairs. A tile's rows see nearly
/// the same keys, the first ones and a band, so short K tiles waste little.
constexpr int kLeftOutRows = 128;
constexpr int kLeftOutKeys = 64;
constexpr int kLeftOutStages = 2;
constexpr size_t kLeftOutBlockLimit = size_t{99} * 1024;  // compute capability 8.6 and 8.9
constexpr int kWideLeftOutThreads = 256;  // two warpgroups with 64 rows each, two blocks an SM

/// Query heads whose rows share a tile: the heads of a KV head, where they share their set too.
constexpr int left_out_pack(int group, int heads_per_set) {
  return heads_per_set >= group && group <= kLeftOutRows ? group : 1;
}

/// Shared memory of a block: Q, the stages of K and V, and 32 bytes about the block's task.
constexpr size_t attend_shared_bytes(int head_dim) {
  return static_cast<size_t>(kAttendTileQ + 2 * kAttendStages * kAttendTileKv) *
             static_cast<size_t>(head_dim) * 2 +
         32;
}

}  // namespace tsp::cuda
