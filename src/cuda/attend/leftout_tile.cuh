// SPDX-License-Identifier: MIT
// What a tile of left-out rows is, for both kernels: pairs of a position and a head, packed so that
// all heads that share K, V and the list share the tile.
#pragma once

#include "cuda/attend/leftout_args.h"
#include "cuda/attend/leftout_line.h"
#include "cuda/ptx.cuh"
#include "cuda/sets.cuh"

namespace tsp::cuda {

struct LeftOutTile {
  int32_t head;     // pair p belongs to query head `head` + p % pack
  int32_t kv_head;  // of all pairs
  int32_t pairs;    // in this tile; 0: none
  KeyLine line;     // their keys
};

/// The block's tile, and the positions of its pairs (beyond the last: the last). Grid: tiles *
/// units, units fastest; a unit is `pack` heads. All threads of the block call it.
__device__ __forceinline__ LeftOutTile left_out_tile(const LeftOutArgs& a,
                                                     int32_t (&position)[kLeftOutRows]) {
  LeftOutTile t{};
  const int units = a.num_heads / a.pack;
  const int unit = static_cast<int>(blockIdx.x) % units;
  const int positions = kLeftOutRows / a.pack;  // of a tile
  const int begin = static_cast<int>(blockIdx.x) / units * positions;
  t.head = unit * a.pack;
  t.kv_head = t.head / a.group;
  const int set = t.head / a.sets.heads_per_set;
  const int kept = num_kept(a.sets, a.k_len) - a.q_first[set];
  const int count = min(a.q_len - kept - begin, positions);
  if (count <= 0) return t;
  t.pairs = count * a.pack;
  const int32_t* rows = a.rows + int64_t{set} * a.q_len + begin;
  for (int pair = static_cast<int>(threadIdx.x); pair < kLeftOutRows;
       pair += static_cast<int>(blockDim.x)) {
    position[pair] = rows[min(pair / a.pack, count - 1)];
  }
  __syncthreads();
  t.line = make_key_line(position[0], position[t.pairs - 1], a.sink, a.band);
  return t;
}

/// What a pair's keys hold that is not finite, put into its output row, by a warp.
template <typename Type, int kHeadDim>
__device__ __noinline__ void poison_left_out(const LeftOutArgs& a, const LeftOutTile& t,
                                             int32_t position, int32_t head) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float sum[kHeadDim / 32] = {};
  for (int n = 0; n <= position - t.line.shift; ++n) {
    if (!sees(n, position - t.line.shift, a.sink, a.band)) continue;
    const uint16_t* v = a.v.row(t.line.key(n), t.kv_head);
#pragma unroll
    for (int c = 0; c < kHeadDim / 32; ++c) {
      const float value = to_float<Type>(v[lane + c * 32]);
      if (!isfinite(value)) sum[c] += value;
    }
  }
  uint16_t* out = a.out.row(position - (a.k_len - a.q_len), head);
#pragma unroll
  for (int c = 0; c < kHeadDim / 32; ++c) {
    if (!isfinite(sum[c])) {
      out[lane + c * 32] = static_cast<uint16_t>(pack<Type>(sum[c], 0.f) & 0xffffu);
    }
  }
}

}  // namespace tsp::cuda
