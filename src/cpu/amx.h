// SPDX-License-Identifier: MIT
// AMX's tile operations: 8 tiles of 16 rows of 64 bytes. Written as assembly, because a tile's
// number is part of the instruction and the compilers' own functions take nothing but a literal.
#pragma once

#include <cstdint>

namespace tsp::cpu {
namespace {

inline void tile_configure() {
  struct alignas(64) {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } const config;
  __asm__ volatile("ldtilecfg %0" ::"m"(config));
}
/// Leaves nothing for the operating system to save when it switches threads.
inline void tile_release() { __asm__ volatile("tilerelease" ::); }

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
/// sums += a * b.
template <int kSums, int kA, int kB>
inline __attribute__((always_inline)) void tile_dot() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kA), "i"(kB));
}

}  // namespace
}  // namespace tsp::cpu
