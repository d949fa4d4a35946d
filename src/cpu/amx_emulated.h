// SPDX-License-Identifier: MIT
// AMX's tile operations in plain C++, for tests on processors without them: what amx.h does, number
// for number, and a trap for tiles that are used outside of begin and end.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace tsp::cpu {
namespace {

struct Tiles {
  bool configured = false;
  uint32_t at[8][16][16];
};
thread_local Tiles tiles_of_thread;

inline Tiles& configured_tiles() {
  if (!tiles_of_thread.configured) __builtin_trap();
  return tiles_of_thread;
}

inline void tile_configure() {
  std::memset(tiles_of_thread.at, 0, sizeof tiles_of_thread.at);
  tiles_of_thread.configured = true;
}
inline void tile_release() { configured_tiles().configured = false; }

template <int kTile>
void tile_zero() {
  std::memset(configured_tiles().at[kTile], 0, sizeof tiles_of_thread.at[kTile]);
}
template <int kTile>
void tile_load(const void* from, int64_t stride_bytes) {
  for (int r = 0; r < 16; ++r) {
    std::memcpy(configured_tiles().at[kTile][r], static_cast<const char*>(from) + r * stride_bytes,
                64);
  }
}
template <int kTile>
void tile_store(void* to, int64_t stride_bytes) {
  for (int r = 0; r < 16; ++r) {
    std::memcpy(static_cast<char*>(to) + r * stride_bytes, configured_tiles().at[kTile][r], 64);
  }
}

/// Element 0 or 1 of a pair of bf16; subnormals are zero.
inline float tile_element(uint32_t pair, int which) {
  const uint32_t bits = which == 0 ? pair << 16 : pair & 0xffff0000u;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return std::fabs(value) < 0x1p-126f ? 0.0f : value;
}
inline float flushed(float value) { return std::fabs(value) < 0x1p-126f ? 0.0f : value; }

template <int kSums, int kA, int kB>
void tile_dot() {
  Tiles& t = configured_tiles();
  for (int m = 0; m < 16; ++m) {
    float sums[2][16] = {};  // of even and odd elements
    for (int k = 0; k < 16; ++k) {
      for (int which = 0; which < 2; ++which) {
        const float a = tile_element(t.at[kA][m][k], which);
        for (int n = 0; n < 16; ++n) {
          sums[which][n] =
              flushed(std::fma(a, tile_element(t.at[kB][k][n], which), sums[which][n]));
        }
      }
    }
    for (int n = 0; n < 16; ++n) {
      float sum;
      std::memcpy(&sum, &t.at[kSums][m][n], sizeof sum);
      sum = flushed(sum + flushed(sums[0][n] + sums[1][n]));
      std::memcpy(&t.at[kSums][m][n], &sum, sizeof sum);
    }
  }
}
inline int32_t tile_byte(uint32_t quad, int which) {
  return static_cast<int8_t>(quad >> (8 * which) & 0xff);
}

template <int kSums, int kA, int kB>
void tile_dot_int8() {
  Tiles& t = configured_tiles();
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 16; ++n) {
      uint32_t sum = t.at[kSums][m][n];  // wraps around
      for (int k = 0; k < 16; ++k) {
        for (int which = 0; which < 4; ++which) {
          sum += static_cast<uint32_t>(tile_byte(t.at[kA][m][k], which) *
                                       tile_byte(t.at[kB][k][n], which));
        }
      }
      t.at[kSums][m][n] = sum;
    }
  }
}

}  // namespace
}  // namespace tsp::cpu
