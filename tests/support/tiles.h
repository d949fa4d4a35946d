// SPDX-License-Identifier: MIT
// AMX's tiles as another library, which configures them once a thread, leaves them. For processors
// that have them and threads that may use them.
#pragma once

#include <array>
#include <cstdint>

namespace tsp::test {

using TileConfig = std::array<uint8_t, 64>;

#if defined(__x86_64__)
/// As ggml does: eight tiles of different shapes.
inline TileConfig configure_tiles() {
  TileConfig config = {1};
  for (size_t tile = 0; tile < 8; ++tile) {
    config[16 + 2 * tile] = tile == 2 || tile == 3 ? 32 : 64;
    config[48 + tile] = tile < 2 ? 8 : 16;
  }
  __asm__ volatile("ldtilecfg %0" ::"m"(config));
  return config;
}

inline TileConfig tiles_as_configured() {
  TileConfig config;
  __asm__ volatile("sttilecfg %0" : "=m"(config));
  return config;
}

inline void release_tiles() { __asm__ volatile("tilerelease" ::); }
#else
inline TileConfig configure_tiles() { return {}; }
inline TileConfig tiles_as_configured() { return {}; }
inline void release_tiles() {}
#endif

}  // namespace tsp::test
