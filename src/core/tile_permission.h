// SPDX-License-Identifier: MIT
// Whether this process may multiply in AMX's tiles. For units of the machine type's baseline, each
// of which has its own: the library shares no code with the adapters.
#pragma once

#include <cpuid.h>

#include <cstdint>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tsp {
namespace {

/// By their bits in leaf 7.
enum class TileProducts : unsigned { kBf16 = 1u << 22, kInt8 = 1u << 25 };

/// Bits 17 and 18: the system saves the tiles' configuration and data.
inline bool saves_tiles() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & bit_OSXSAVE) == 0) return false;
  unsigned low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low >> 17 & 3) == 3;
}

/// Linux gives the tiles' state to those who ask; once is enough for all threads.
inline bool are_tiles_granted() {
#if defined(__linux__)
  constexpr int64_t kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

/// Whether the processor has these products, and the process, which asks for it, its tiles.
inline bool may_use_tiles(TileProducts products) {
  constexpr unsigned kTile = 1u << 24;
  const unsigned needed = static_cast<unsigned>(products) | kTile;
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & needed) == needed && saves_tiles() &&
         are_tiles_granted();
}

}  // namespace
}  // namespace tsp
