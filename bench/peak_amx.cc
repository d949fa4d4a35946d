// SPDX-License-Identifier: MIT
#include "bench/peak.h"
#include "cpu/amx.h"

namespace tsp::bench {
namespace {

/// Operations of `rounds` of four products of tiles, each of 16 x 16 sums over `depth` values.
template <typename Products>
double repeat(int64_t rounds, int depth, const Products& products) {
  cpu::tile_configure();  // tiles start as zeros
  for (int64_t round = 0; round < rounds; ++round) products();
  cpu::tile_release();
  return static_cast<double>(rounds) * 4 * (16 * 16 * depth * 2);
}

}  // namespace

double peak_amx_bf16(int64_t rounds, float* /*sink*/) {
  return repeat(rounds, 32, [] {
    cpu::tile_dot<0, 6, 7>();
    cpu::tile_dot<1, 6, 7>();
    cpu::tile_dot<2, 6, 7>();
    cpu::tile_dot<3, 6, 7>();
  });
}

double peak_amx_int8(int64_t rounds, float* /*sink*/) {
  return repeat(rounds, 64, [] {
    cpu::tile_dot_int8<0, 6, 7>();
    cpu::tile_dot_int8<1, 6, 7>();
    cpu::tile_dot_int8<2, 6, 7>();
    cpu::tile_dot_int8<3, 6, 7>();
  });
}

}  // namespace tsp::bench
