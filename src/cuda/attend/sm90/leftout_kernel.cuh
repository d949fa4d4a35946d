// SPDX-License-Identifier: MIT
// The rows that a set left out on warpgroup products: 128 pairs of a position and a head a block,
// 64 for each of two warpgroups, their keys in tiles of 64 through two stages. Two blocks share a
// multiprocessor: products of one warpgroup run under the exponentials of the three others, and a
// block's first tiles arrive under the products of the other block. The copy engine brings K and V;
// where they lie in blocks of a pool, cp.async does.
#pragma once

#include "cuda/attend/leftout_tile.cuh"
#include "cuda/launch.h"
#include "cuda/sm90/mbarrier.cuh"
#include "cuda/sm90/row_map.h"
#include "cuda/sm90/tma.cuh"
#include "cuda/sm90/wgmma.cuh"

namespace tsp::cuda {

struct WideLeftOutArgs {
  LeftOutArgs a;
  CUtensorMap k_map;  // not where K and V are paged
  CUtensorMap v_map;
};

template <typename Type, int kHeadDim, bool kPaged>
struct WideLeftOut {
  static constexpr int kChunks = kHeadDim / 8;                  // 16-byte chunks of a row
  static constexpr int kBlocks = kHeadDim / 64;                 // column blocks of 128 bytes
  static constexpr int kLanes = kWideLeftOutThreads / kChunks;  // rows that are copied at once
  static constexpr int kScores = kLeftOutKeys / 2;  // of a thread: rows lane / 4 and 8 below
  static constexpr int kOutputs = kHeadDim / 2;
  static constexpr int kGroupRows = 64;

  struct SharedStorage {
    uint4 q[kLeftOutRows * kChunks];  // later O
    uint4 k[kLeftOutStages][kLeftOutKeys * kChunks];
    uint4 v[kLeftOutStages][kLeftOutKeys * kChunks];
    uint64_t full[kLeftOutStages];   // a K tile and its V tile have arrived
    uint64_t empty[kLeftOutStages];  // every warp is done with both
    int32_t position[kLeftOutRows];
    LeftOutTile tile;  // here because registers are short
  };
  static_assert(2 * (sizeof(SharedStorage) + 1024) <= size_t{227} * 1024);
  static_assert(kLeftOutRows == kWideLeftOutThreads / 128 * kGroupRows);

  /// Where chunk `chunk` of row `row` lies in a tile of kRows (see sm90/wgmma.cuh).
  template <int kRows>
  static __device__ __forceinline__ int place(int row, int chunk) {
    return (chunk / 8 * kRows + row) * 8 + ((chunk ^ row) & 7);
  }

  static constexpr int kWarps = kWideLeftOutThreads / 32;
  static constexpr int kStageBytes = kLeftOutKeys * kHeadDim * 2 * 2;

  const WideLeftOutArgs& args;
  const LeftOutArgs& a;
  SharedStorage& shared;
  int step = 0;  // K tiles so far: they take the stages in turn

  float o[kOutputs];
  float max[2];  // of rows lane / 4 and 8 below, before the scale
  float sum[2];  // this thread's share

  __device__ __forceinline__ WideLeftOut(const WideLeftOutArgs& arguments, SharedStorage& storage)
      : args(arguments), a(arguments.a), shared(storage) {}

  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  /// The warpgroup.
  static __device__ __forceinline__ int group() {
    return __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0);
  }
  /// This thread's first pair; the other is 8 below.
  __device__ __forceinline__ int own_pair() const {
    return static_cast<int>(threadIdx.x) / 32 * 16 + lane() / 4;
  }

  __device__ __forceinline__ void fetch_queries() {
    const int chunk = static_cast<int>(threadIdx.x) % kChunks;
#pragma unroll 1
    for (int pair = static_cast<int>(threadIdx.x) / kChunks; pair < kLeftOutRows; pair += kLanes) {
      const int row = shared.position[pair] - (a.k_len - a.q_len);
      copy_async(shared.q + place<kLeftOutRows>(pair, chunk),
                 a.q.row(row, shared.tile.head + pair % a.pack) + chunk * 8,
                 pair < shared.tile.pairs);
    }
  }

  static __device__ __forceinline__ void set_up(SharedStorage& storage) {
    for (int stage = 0; stage < kLeftOutStages; ++stage) {
      init_barrier(&storage.full[stage], 1);
      init_barrier(&storage.empty[stage], kWarps * kWarpArrivals);
    }
    fence_barrier_init();
  }

  /// Keys [begin, begin + 64) of the line, as tile `at`, by one thread.
  __device__ __forceinline__ void bring_keys(int begin, int at) {
    if (begin >= shared.tile.line.count) return;
    const int stage = at % kLeftOutStages;
    if (at >= kLeftOutStages) wait_for(&shared.empty[stage], (at / kLeftOutStages - 1) & 1);
    arrive_expecting(&shared.full[stage], kStageBytes);
    const int key = shared.tile.line.key(begin);
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const TileAt from = {key, block, shared.tile.kv_head};
      copy_tile(shared.k[stage] + block * kLeftOutKeys * 8, &args.k_map, from, &shared.full[stage]);
      copy_tile(shared.v[stage] + block * kLeftOutKeys * 8, &args.v_map, from, &shared.full[stage]);
    }
  }

  /// The same by all threads, without barriers.
  __device__ __forceinline__ void copy_keys(int begin, int at) {
    if (begin < shared.tile.line.count) {
      const int stage = at % kLeftOutStages;
      const int chunk = static_cast<int>(threadIdx.x) % kChunks;
#pragma unroll 1  // the accumulators leave no registers for more addresses
      for (int row = static_cast<int>(threadIdx.x) / kChunks; row < kLeftOutKeys; row += kLanes) {
        const int key = shared.tile.line.key(begin + row);
        const bool valid = key < a.k_len;
        const int to = place<kLeftOutKeys>(row, chunk);
        const int from = valid ? key : 0;
        copy_async(shared.k[stage] + to, a.k.row(from, shared.tile.kv_head) + chunk * 8, valid);
        copy_async(shared.v[stage] + to, a.v.row(from, shared.tile.kv_head) + chunk * 8, valid);
      }
    }
    commit_copies();
  }

  /// The first tile is under way.
  __device__ __forceinline__ void start_keys() {
    if constexpr (kPaged) {
      copy_keys(0, step);
    } else if (threadIdx.x == 0) {
      bring_keys(0, step);
    }
  }

  /// Values of a V stage that are not finite become 0.
  static __device__ __noinline__ void clean(uint4* s_v) {
    auto* words = reinterpret_cast<uint32_t*>(s_v);
    for (int i = static_cast<int>(threadIdx.x); i < kLeftOutKeys * kChunks * 4;
         i += kWideLeftOutThreads) {
      words[i] = finite_or_zero<Type>(words[i]);
    }
    fence_for_wgmma();
    __syncthreads();
  }

  /// Starts S = Q K^T of the warpgroup's 64 rows.
  __device__ __forceinline__ void start_qk(float (&s)[kScores], int stage) {
    const uint32_t q = shared_address(shared.q) + static_cast<uint32_t>(group()) * kGroupRows * 128;
    const uint32_t k = shared_address(shared.k[stage]);
    wgmma_fence();
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const uint64_t q_tile = tile_descriptor(q + block * kLeftOutRows * 128);
      const uint64_t k_tile = tile_descriptor(k + block * kLeftOutKeys * 128);
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        wgmma<Type>(s, q_tile + step * 2, k_tile + step * 2, block + step > 0);
      }
    }
    wgmma_commit();
  }

  /// Hides what a pair does not see. `begin`: place of the tile's first key.
  __device__ __forceinline__ void hide(float (&s)[kScores], int begin) {
    const int column = begin + lane() % 4 * 2;
    const int sink = a.sink - column;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int own = shared.position[own_pair() + half * 8] - shared.tile.line.shift - column;
#pragma unroll
      for (int i = 0; i < kScores / 2; ++i) {
        const int at = i / 2 * 8 + i % 2;
        if (!sees(at, own, sink, a.band)) s[i / 2 * 4 + half * 2 + i % 2] = -INFINITY;
      }
    }
  }

  /// S becomes P = 2^(S - max), O and the sums are brought to the new maximum.
  __device__ __forceinline__ void softmax(float (&s)[kScores]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = max[half];
#pragma unroll
      for (int i = 0; i < kScores / 2; ++i) top = fmaxf(top, s[i / 2 * 4 + half * 2 + i % 2]);
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
      // A row that has seen no key yet: any finite maximum gives zeros instead of inf - inf.
      const float shift = top == -INFINITY ? 0.f : top * a.scale_log2;
      const float alpha = exp2_fast(fmaf(max[half], a.scale_log2, -shift));
      max[half] = top;
      float part[2] = {};
#pragma unroll
      for (int i = 0; i < kScores / 2; ++i) {
        float& value = s[i / 2 * 4 + half * 2 + i % 2];
        value = exp2_fast(fmaf(value, a.scale_log2, -shift));
        part[i % 2] += value;
      }
      sum[half] = sum[half] * alpha + part[0] + part[1];
#pragma unroll
      for (int i = 0; i < kOutputs / 2; ++i) o[i / 2 * 4 + half * 2 + i % 2] *= alpha;
    }
  }

  /// Starts O += P V.
  __device__ __forceinline__ void start_pv(const float (&s)[kScores], int stage) {
    uint32_t p[kLeftOutKeys / 16][4];
#pragma unroll
    for (int step = 0; step < kLeftOutKeys / 16; ++step) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        p[step][j] = pack<Type>(s[8 * step + 2 * j], s[8 * step + 2 * j + 1]);
      }
    }
    const uint64_t v = transposed_descriptor(shared_address(shared.v[stage]), kLeftOutKeys * 128);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kLeftOutKeys / 16; ++step) {
      wgmma<Type, true>(o, p[step], v + step * 128, 1);
    }
    wgmma_commit();
  }

  __device__ __forceinline__ void attend_tile(int begin, int stage, int first, int last) {
    float s[kScores];
    start_qk(s, stage);
    wgmma_wait<0>();
    pin(s);
    if (!shared.tile.line.all_see(begin, first, last, a.sink, a.band)) hide(s, begin);
    softmax(s);
    start_pv(s, stage);
    wgmma_wait<0>();
    pin(o);
  }

  /// Tile `at` has been read by this warp.
  __device__ __forceinline__ void release(int at) {
    arrive_warp(&shared.empty[at % kLeftOutStages]);
  }

  /// All keys of the line, the first ones under way already.
  __device__ __forceinline__ void walk(bool cleaned) {
#pragma unroll
    for (float& value : o) value = 0.f;
    max[0] = max[1] = -INFINITY;
    sum[0] = sum[1] = 0.f;
    const int first = shared.position[group() * kGroupRows];
    const int last = shared.position[group() * kGroupRows + kGroupRows - 1];
#pragma unroll 1
    for (int begin = 0; begin < shared.tile.line.count; begin += kLeftOutKeys, ++step) {
      const int stage = step % kLeftOutStages;
      if constexpr (kPaged) {
        wait_copies<0>();
        fence_for_wgmma();
        __syncthreads();  // this tile is there, and everybody has left the one before
        copy_keys(begin + kLeftOutKeys, step + 1);
      } else {
        if (threadIdx.x == 0) bring_keys(begin + kLeftOutKeys, step + 1);
        __syncwarp();
        wait_for(&shared.full[stage], step / kLeftOutStages & 1);
      }
      if (cleaned) clean(shared.v[stage]);
      if (!shared.tile.line.none_sees(begin, first, last, a.sink, a.band)) {
        attend_tile(begin, stage, first, last);
      }
      if constexpr (!kPaged) release(step);
    }
  }

  __device__ __forceinline__ bool not_finite() const {
    bool found = false;
#pragma unroll
    for (const float value : o) found |= !isfinite(value);
    return found;
  }

  /// Rows leave 16 bytes a thread, through the warp's own rows of Q.
  __device__ __forceinline__ void write() {
    sync_named(1 + group(), 128);  // the warpgroup's products have read Q
    const int q_pos = a.k_len - a.q_len;
    const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float total = sum[half];
      total += __shfl_xor_sync(~0u, total, 1);
      total += __shfl_xor_sync(~0u, total, 2);
      const float inverse = 1.f / total;
      const int pair = own_pair() + half * 8;
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        auto* to = reinterpret_cast<uint32_t*>(shared.q + place<kLeftOutRows>(pair, chunk));
        const float* from = o + chunk * 4 + half * 2;
        to[lane() % 4] = pack<Type>(from[0] * inverse, from[1] * inverse);
      }
      if (a.lse.data != nullptr && lane() % 4 == 0 && pair < shared.tile.pairs) {
        const float top = max[half] == -INFINITY ? 0.f : max[half] * a.scale_log2;
        a.lse.at(shared.position[pair] - q_pos, shared.tile.head + pair % a.pack) =
            (top + log2f(total)) * 0.6931471805599453f;
      }
    }
    __syncwarp();
#pragma unroll 4
    for (int i = 0; i < kChunks / 2; ++i) {
      const int pair = warp_row + (i * 32 + lane()) / kChunks;
      const int chunk = (i * 32 + lane()) % kChunks;
      if (pair >= shared.tile.pairs) continue;
      auto* to = a.out.row(shared.position[pair] - q_pos, shared.tile.head + pair % a.pack);
      reinterpret_cast<uint4*>(to)[chunk] = shared.q[place<kLeftOutRows>(pair, chunk)];
    }
  }

  __device__ __forceinline__ void poison() {
    __syncwarp();
    const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16;
    for (int pair = warp_row; pair < min(warp_row + 16, shared.tile.pairs); ++pair) {
      poison_left_out<Type, kHeadDim>(a, shared.tile, shared.position[pair],
                                      shared.tile.head + pair % a.pack);
    }
  }
};

/// Grid: see left_out_tile().
template <typename Type, int kHeadDim, bool kPaged>
__global__ void __launch_bounds__(kWideLeftOutThreads, 2)
    wide_left_out_kernel(const __grid_constant__ WideLeftOutArgs args) {
  await_previous();
  using Block = WideLeftOut<Type, kHeadDim, kPaged>;
  extern __shared__ __align__(1024) unsigned char raw[];
  auto& shared = *reinterpret_cast<typename Block::SharedStorage*>(raw);
  {
    const LeftOutTile tile = left_out_tile(args.a, shared.position);
    if (tile.pairs == 0) return;
    if (threadIdx.x == 0) {
      shared.tile = tile;
      Block::set_up(shared);
    }
  }
  __syncthreads();
  Block block(args, shared);
  block.start_keys();
  block.fetch_queries();
  commit_copies();
  wait_copies<0>();
  fence_for_wgmma();
  __syncthreads();
  // A NaN or an infinity of V meets weights of 0 too. Where one shows, all is done again without.
  bool clean = false;
  for (;; clean = true, block.start_keys()) {
    block.walk(clean);
    if (__syncthreads_or(block.not_finite()) == 0 || clean) break;
  }
  block.write();
  if (clean) block.poison();
}

template <typename Type, int kHeadDim>
tsp_status_t launch_wide_left_out(const LeftOutArgs& a, cudaStream_t stream) {
  using Storage = typename WideLeftOut<Type, kHeadDim, false>::SharedStorage;
  WideLeftOutArgs args{a, {}, {}};
  const bool paged = a.k.table != nullptr;
  if (!paged) {
    const int32_t kv_heads = a.num_heads / a.group;
    TSP_RETURN_IF_ERROR(
        make_row_map("attend", &args.k_map, a.k, a.k_len, kv_heads, kHeadDim, kLeftOutKeys));
    TSP_RETURN_IF_ERROR(
        make_row_map("attend", &args.v_map, a.v, a.k_len, kv_heads, kHeadDim, kLeftOutKeys));
  }
  return launch("left_out",
                paged ? wide_left_out_kernel<Type, kHeadDim, true>
                      : wide_left_out_kernel<Type, kHeadDim, false>,
                dim3(left_out_blocks(a)), dim3(kWideLeftOutThreads), sizeof(Storage), stream, args);
}

}  // namespace tsp::cuda
