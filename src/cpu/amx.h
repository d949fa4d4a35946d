// SPDX-License-Identifier: MIT
// AMX's tile operations: 8 tiles of 16 rows of 64 bytes. Written as assembly, because a tile's
// number is part of the instruction and the compilers' own functions take nothing but a literal.
#pragma once

#include <cstdint>

namespace tsp::cpu {
namespace {

struct alignas(64) TileConfig {
  uint8_t palette;  // 0: tiles are not in use
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
thread_local TileConfig tiles_before;

inline void tile_configure() {
  static constexpr TileConfig kWhole = {
      1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
  __asm__ volatile("sttilecfg %0" : "=m"(tiles_before));
  __asm__ volatile("ldtilecfg %0" ::"m"(kWhole));
}
/// Leaves the tiles as they were configured: ggml does that once a thread. Else nothing is left for
/// the operating system to save when it switches threads.
inline void tile_release() {
  if (tiles_before.palette == 0) {
    __asm__ volatile("tilerelease" ::);
  } else {
    __asm__ volatile("ldtilecfg %0" ::"m"(tiles_before));
  }
}

template <int kTile>
inline __attribute__((always_inline)) void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
template <int kTile>
inline __attribute__((always_inline)) void tile_load(const void* from, int64_t stride_bytes) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride_bytes), "i"(kTile)
                   : "memory");
}
template <int kTile>
inline __attribute__((always_inline)) void tile_store(void* to, int64_t stride_bytes) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride_bytes), "i"(kTile)
                   : "memory");
}
/// sums += a * b, of pairs of bf16.
template <int kSums, int kA, int kB>
inline __attribute__((always_inline)) void tile_dot() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kA), "i"(kB));
}
/// sums += a * b, of quads of signed bytes.
template <int kSums, int kA, int kB>
inline __attribute__((always_inline)) void tile_dot_int8() {
  __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kA), "i"(kB));
}

}  // namespace
}  // namespace tsp::cpu
