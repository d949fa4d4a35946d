// SPDX-License-Identifier: MIT
// Tiles of the warpgroup attention kernel and the order of its work: plain C++, so that g++ tests
// them.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#define TSP_CONFIG_FUNCTION __host__ __device__ constexpr
#else
#define TSP_CONFIG_FUNCTION constexpr
#endif

namespace tsp::cuda {

constexpr int kSm90TileKv = 128;  // keys of a step, and of a block in a list of blocks
constexpr int kSm90Stages = 3;    // K tiles, and V tiles, in flight: all that D 128 has room for
constexpr int kSm90Tasks = 2;     // one under way, one announced
constexpr int kSm90QueryWarps = 3;

/// How many rows a block works on at a time. `consumers`: warpgroups of 64 query rows that
/// multiply; one more brings Q, K and V. Two fit at D 128. At D 64 the exponentials take as long as
/// the products, so a third helps, but its registers have no room for Q.
struct Sm90Shape {
  int consumers;

  TSP_CONFIG_FUNCTION int tile_q() const { return 64 * consumers; }
  TSP_CONFIG_FUNCTION int threads() const { return 128 * (1 + consumers); }
  TSP_CONFIG_FUNCTION bool queries_in_registers() const { return consumers == 2; }
  // Together what the threads start with: 168 each of 384, 128 of 512. 24 would make the producer
  // spill.
  TSP_CONFIG_FUNCTION int producer_registers() const { return consumers == 2 ? 40 : 32; }
  TSP_CONFIG_FUNCTION int consumer_registers() const { return consumers == 2 ? 232 : 160; }
};
/// Lists of blocks are made for tiles of 128 rows.
TSP_CONFIG_FUNCTION Sm90Shape sm90_shape(int head_dim, bool lists) {
  return {head_dim == 64 && !lists ? 3 : 2};
}

constexpr size_t sm90_shared_limit_bytes = size_t{227} * 1024;

constexpr float kSm90NoMax = -1e38f;  // maximum over no key: finite, so no inf - inf
// Weights of a row and step may sum up to this before the maximum is raised: f16 holds it.
constexpr float kSm90RaiseAbove = 32768.f;
// With a maximum in hand, O is rescaled only where it rose by more than 2^this.
constexpr float kSm90RescaleAbove = 8.f;
constexpr int64_t kSm90CacheBytes = int64_t{32} << 20;  // of L2, for K and V

/// A query tile of one head, as the schedule hands it out.
struct Sm90Work {
  int32_t head;  // of this launch
  int32_t tile;
};

/// The order of the work: sections of heads whose K and V fit L2 together; in a section the longest
/// tiles first, heads side by side.
struct Sm90Order {
  int32_t num_heads;      // of this launch
  int32_t num_tiles;      // query tiles of a head
  int32_t section_heads;  // query heads of a section

  TSP_CONFIG_FUNCTION int32_t num_items() const { return num_heads * num_tiles; }
  TSP_CONFIG_FUNCTION Sm90Work at(int32_t item) const {
    const int32_t section = item / (section_heads * num_tiles);
    const int32_t rest = item - section * section_heads * num_tiles;
    const int32_t left = num_heads - section * section_heads;
    const int32_t heads = left < section_heads ? left : section_heads;
    return {section * section_heads + rest % heads, num_tiles - 1 - rest / heads};
  }
};

/// `num_keys`: of each head. The K and V of a section: a power of two, at least one.
TSP_CONFIG_FUNCTION Sm90Order make_sm90_order(int32_t num_heads, int32_t heads_per_unit,
                                              int32_t num_rows, int32_t num_keys, int32_t head_dim,
                                              int32_t tile_q) {
  const int64_t unit_bytes = int64_t{num_keys} * head_dim * 2 * 2;
  int32_t units = 1;
  while (units < num_heads && unit_bytes * units * 2 <= kSm90CacheBytes) units *= 2;
  return {num_heads, (num_rows + tile_q - 1) / tile_q, units * heads_per_unit};
}

}  // namespace tsp::cuda
