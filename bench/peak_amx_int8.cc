// SPDX-License-Identifier: MIT
#include "bench/peak.h"
#include "cpu/amx.h"

namespace tsp::bench {

double peak_amx_int8(int64_t rounds, float* /*sink*/) {
  using namespace cpu;
  tile_configure();  // tiles start as zeros
  for (int64_t round = 0; round < rounds; ++round) {
    tile_dot_int8<0, 6, 7>();
    tile_dot_int8<1, 6, 7>();
    tile_dot_int8<2, 6, 7>();
    tile_dot_int8<3, 6, 7>();
  }
  tile_release();
  return static_cast<double>(rounds) * 4 * (16 * 16 * 64 * 2);
}

}  // namespace tsp::bench
