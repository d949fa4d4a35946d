// SPDX-License-Identifier: MIT
// The rows that a set left out on mma.sync: 128 pairs of a position and a head a block, their keys
// in tiles of 64 through two cp.async stages.
#pragma once

#include "cuda/attend/leftout_tile.cuh"
#include "cuda/attend/sm80/attend_kernel.cuh"

namespace tsp::cuda {

template <typename Type, int kHeadDim>
struct LeftOutBlock : AttendTile<Type, kHeadDim> {
  using Base = AttendTile<Type, kHeadDim>;
  using Base::kChunks, Base::kKeyTiles, Base::kRowTiles, Base::s;
  static constexpr int kLanes = kAttendThreads / kChunks;  // rows that the block copies at once

  struct SharedStorage {
    uint4 q[kLeftOutRows * kChunks];  // later O
    uint4 k[kLeftOutStages][kLeftOutKeys * kChunks];
    uint4 v[kLeftOutStages][kLeftOutKeys * kChunks];
    int32_t position[kLeftOutRows];
    LeftOutTile tile;
  };
  static_assert(sizeof(SharedStorage) <= kLeftOutBlockLimit);
  static_assert(kLeftOutRows == kAttendTileQ && kLeftOutKeys == kAttendTileKv);

  static __device__ __forceinline__ void fetch_queries(const LeftOutArgs& a,
                                                       const volatile SharedStorage& task,
                                                       uint4* s_q) {
    const int chunk = static_cast<int>(threadIdx.x) % kChunks;
#pragma unroll 1
    for (int pair = static_cast<int>(threadIdx.x) / kChunks; pair < kLeftOutRows; pair += kLanes) {
      const int row = task.position[pair] - (a.k_len - a.q_len);
      copy_async(s_q + swizzled<kChunks>(pair, chunk),
                 a.q.row(row, task.tile.head + pair % a.pack) + chunk * 8, pair < task.tile.pairs);
    }
  }

  /// Keys [begin, begin + 64) of the line; zeros behind its end.
  static __device__ __forceinline__ void fetch_keys(const LeftOutArgs& a,
                                                    const volatile SharedStorage& task, uint4* s_k,
                                                    uint4* s_v, int begin) {
    const int chunk = static_cast<int>(threadIdx.x) % kChunks;
#pragma unroll 1
    for (int row = static_cast<int>(threadIdx.x) / kChunks; row < kLeftOutKeys; row += kLanes) {
      const int n = begin + row;
      const int place = n + (n < task.tile.line.sinks ? 0 : task.tile.line.shift);
      const bool valid = n < task.tile.line.count && place < a.k_len;
      const int key = valid ? place : 0;
      const int to = swizzled<kChunks>(row, chunk);
      copy_async(s_k + to, a.k.row(key, task.tile.kv_head) + chunk * 8, valid);
      copy_async(s_v + to, a.v.row(key, task.tile.kv_head) + chunk * 8, valid);
    }
  }

  /// Hides what a pair does not see. `begin`: place of the tile's first key.
  __device__ __forceinline__ void hide(const LeftOutArgs& a, const volatile SharedStorage& task,
                                       int begin, int warp_row, int lane) {
    const int column = begin + lane % 4 * 2;
#pragma unroll
    for (int rt = 0; rt < kRowTiles; ++rt) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int pair = warp_row + rt * 16 + half * 8 + lane / 4;
        const int own = task.position[pair] - task.tile.line.shift - column;
        const int sink = a.sink - column;
#pragma unroll
        for (int kt = 0; kt < kKeyTiles; ++kt) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            if (!sees(kt * 8 + i, own, sink, a.band)) s[rt][kt][half * 2 + i] = -INFINITY;
          }
        }
      }
    }
  }

  /// Whether this thread has a value of O that is not finite.
  __device__ __forceinline__ bool not_finite() const {
    bool found = false;
#pragma unroll
    for (const auto& rows : this->o) {
#pragma unroll
      for (const auto& tile : rows) {
#pragma unroll
        for (const float value : tile) found |= !isfinite(value);
      }
    }
    return found;
  }
};

/// Grid: see left_out_tile().
template <typename Type, int kHeadDim>
__global__ void __launch_bounds__(kAttendThreads, kAttendBlocksPerSm)
    left_out_kernel(const __grid_constant__ LeftOutArgs a) {
  await_previous();
  using Block = LeftOutBlock<Type, kHeadDim>;
  constexpr int kChunks = Block::kChunks;
  extern __shared__ __align__(1024) unsigned char raw[];
  auto& shared = *reinterpret_cast<typename Block::SharedStorage*>(raw);
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  {
    const LeftOutTile tile = left_out_tile(a, shared.position);
    if (tile.pairs == 0) return;
    if (threadIdx.x == 0) shared.tile = tile;
  }
  __syncthreads();
  // Read from shared memory where it is used: registers are short.
  const auto& task = const_cast<const volatile typename Block::SharedStorage&>(shared);
  const auto fetch = [&](int begin) {
    if (begin < task.tile.line.count) {
      const int stage = begin / kLeftOutKeys % kLeftOutStages;
      Block::fetch_keys(a, task, shared.k[stage], shared.v[stage], begin);
    }
    commit_copies();
  };
  Block::fetch_queries(a, task, shared.q);

  Block t;
  // A NaN or an infinity of V meets weights of 0 too. Where one shows, all is done again without.
  bool clean = false;
  for (;; clean = true) {
    t.clear();
    fetch(0);
#pragma unroll 1
    for (int begin = 0; begin < task.tile.line.count; begin += kLeftOutKeys) {
      wait_copies<0>();
      __syncthreads();  // this tile is there, and everybody has left the one before
      fetch(begin + kLeftOutKeys);
      const int stage = begin / kLeftOutKeys % kLeftOutStages;
      if (clean) Block::clean(shared.v[stage]);
      const int first = task.position[warp_row], last = task.position[warp_row + 31];
      const KeyLine line = shared.tile.line;
      if (line.none_sees(begin, first, last, a.sink, a.band)) continue;
      t.multiply_qk(shared.q, shared.k[stage], warp_row, lane);
      if (!line.all_see(begin, first, last, a.sink, a.band)) t.hide(a, task, begin, warp_row, lane);
      t.softmax(a.scale_log2);
      t.multiply_pv(shared.v[stage], lane);
    }
    if (__syncthreads_or(t.not_finite()) == 0 || clean) break;
  }

  const float lse = t.finish(shared.q, warp_row, lane, a.scale_log2);
  const int q_pos = a.k_len - a.q_len;
  const auto head_of = [&](int pair) { return task.tile.head + pair % a.pack; };
  if (warp_row + lane < task.tile.pairs && a.lse.data != nullptr) {
    a.lse.at(task.position[warp_row + lane] - q_pos, head_of(warp_row + lane)) = lse;
  }
#pragma unroll 4
  for (int i = 0; i < kChunks; ++i) {
    const int pair = warp_row + (i * 32 + lane) / kChunks;
    const int chunk = (i * 32 + lane) % kChunks;
    if (pair < task.tile.pairs) {
      reinterpret_cast<uint4*>(a.out.row(task.position[pair] - q_pos, head_of(pair)))[chunk] =
          shared.q[swizzled<kChunks>(pair, chunk)];
    }
  }
  if (!clean) return;
  __syncwarp();
  for (int pair = warp_row; pair < min(warp_row + 32, shared.tile.pairs); ++pair) {
    poison_left_out<Type, kHeadDim>(a, shared.tile, shared.position[pair], head_of(pair));
  }
}

template <typename Type, int kHeadDim>
tsp_status_t launch_left_out(const LeftOutArgs& args, cudaStream_t stream) {
  return launch("left_out", left_out_kernel<Type, kHeadDim>, dim3(left_out_blocks(args)),
                dim3(kAttendThreads), sizeof(typename LeftOutBlock<Type, kHeadDim>::SharedStorage),
                stream, args);
}

}  // namespace tsp::cuda
