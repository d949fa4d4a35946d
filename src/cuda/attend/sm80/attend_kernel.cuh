// SPDX-License-Identifier: MIT
// Causal attention with an index list gathered on the fly (or none), FlashAttention-2 style:
// 128 query rows a block, K and V in tiles of 64 entries through two cp.async stages, S and P in
// registers, running maximum and sum per row. Rows come and go by their list entry, so gather and
// scatter cost no pass of their own.
#pragma once

#include "cuda/attend/attend_args.h"
#include "cuda/launch.h"
#include "cuda/sets.cuh"
#include "cuda/sm80/mma.cuh"

namespace tsp::cuda {

template <typename Type, int kHeadDim>
struct AttendTile {
  static constexpr int kChunks = kHeadDim / 8;
  static constexpr int kSteps = kHeadDim / 16;         // k16 steps of Q K^T
  static constexpr int kKeyTiles = kAttendTileKv / 8;  // n8 tiles of S
  static constexpr int kDimTiles = kHeadDim / 8;       // n8 tiles of O
  static constexpr int kRowTiles = 2;                  // m16 tiles of a warp
  static constexpr int kRowBytes = kHeadDim * 2;

  struct SharedStorage {
    uint4 q[kAttendTileQ * kChunks];  // later O
    uint4 k[kAttendStages][kAttendTileKv * kChunks];
    uint4 v[kAttendStages][kAttendTileKv * kChunks];
    // What only the fetches need, kept here because registers are short.
    const int32_t* list;
    const int32_t* blocks;  // null: every one
    int n;
    int kv_head;
    int first;    // list entry of row 0
    int clean_v;  // V has values that are not finite

    /// First entry of the K tile of a step.
    __device__ __forceinline__ int key_of(int step) const volatile {
      if (blocks == nullptr) return step * kAttendTileKv;
      constexpr int kSteps = kKeyBlock / kAttendTileKv;
      return blocks[step / kSteps] * kKeyBlock + step % kSteps * kAttendTileKv;
    }
  };
  static_assert(sizeof(SharedStorage) == attend_shared_bytes(kHeadDim));

  /// Starts the copies of entries [begin, begin + kRows); entries from `end` on become zeros.
  template <int kRows>
  static __device__ __forceinline__ void fetch(uint4* shared, const Rows& rows, int head,
                                               const int32_t* list, int begin, int end,
                                               int token_offset) {
    constexpr int kLanes = kAttendThreads / kChunks;
    const int chunk = static_cast<int>(threadIdx.x) % kChunks;
#pragma unroll 1  // the accumulators leave no registers for more addresses
    for (int i = 0; i < kRows / kLanes; ++i) {
      const int row = static_cast<int>(threadIdx.x) / kChunks + i * kLanes;
      const bool valid = begin + row < end;
      const int token = valid ? position_of(list, begin + row) - token_offset : 0;
      copy_async(shared + swizzled<kChunks>(row, chunk), rows.row(token, head) + chunk * 8, valid);
    }
  }

  /// Values of V that are not finite become 0.
  static __device__ __noinline__ void clean(uint4* s_v) {
    auto* words = reinterpret_cast<uint32_t*>(s_v);
    for (int i = static_cast<int>(threadIdx.x); i < kAttendTileKv * kChunks * 4;
         i += kAttendThreads) {
      words[i] = finite_or_zero<Type>(words[i]);
    }
    __syncthreads();
  }

  float s[kRowTiles][kKeyTiles][4];
  float o[kRowTiles][kDimTiles][4];
  float max[kRowTiles][2];  // of rows lane/4 and lane/4 + 8, before the scale
  float sum[kRowTiles][2];  // this thread's share

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int rt = 0; rt < kRowTiles; ++rt) {
#pragma unroll
      for (int dt = 0; dt < kDimTiles; ++dt) {
#pragma unroll
        for (int i = 0; i < 4; ++i) o[rt][dt][i] = 0.f;
      }
      max[rt][0] = max[rt][1] = -INFINITY;
      sum[rt][0] = sum[rt][1] = 0.f;
    }
  }

  /// S = Q K^T of the warp's 32 rows.
  __device__ __forceinline__ void multiply_qk(const uint4* s_q, const uint4* s_k, int first_row,
                                              int lane) {
    const uint32_t q_lane =
        lane_address<kChunks>(shared_address(s_q), first_row + lane % 16, lane / 16);
    const uint32_t k_lane =
        lane_address<kChunks>(shared_address(s_k), lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (int rt = 0; rt < kRowTiles; ++rt) {
#pragma unroll
      for (int kt = 0; kt < kKeyTiles; ++kt) {
#pragma unroll
        for (int i = 0; i < 4; ++i) s[rt][kt][i] = 0.f;
      }
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t q[kRowTiles][4];
#pragma unroll
      for (int rt = 0; rt < kRowTiles; ++rt) {
        load_matrix(q[rt], at_chunk(q_lane, step * 2) + rt * 16 * kRowBytes);
      }
#pragma unroll
      for (int kt = 0; kt < kKeyTiles; kt += 2) {
        uint32_t k[4];
        load_matrix(k, at_chunk(k_lane, step * 2) + kt * 8 * kRowBytes);
#pragma unroll
        for (int rt = 0; rt < kRowTiles; ++rt) {
          mma<Type>(s[rt][kt], q[rt], k[0], k[1]);
          mma<Type>(s[rt][kt + 1], q[rt], k[2], k[3]);
        }
      }
    }
  }

  /// Hides the keys behind a row's own entry. `ahead`: of s[0][0][0], the key less the row.
  __device__ __forceinline__ void mask(int ahead) {
#pragma unroll
    for (int rt = 0; rt < kRowTiles; ++rt) {
#pragma unroll
      for (int kt = 0; kt < kKeyTiles; ++kt) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int offset = kt * 8 + i % 2 - rt * 16 - i / 2 * 8;
          if (ahead + offset > 0) s[rt][kt][i] = -INFINITY;
        }
      }
    }
  }

  /// P = 2^(S - max), with O and the sums brought to the new maximum.
  __device__ __forceinline__ void softmax(float scale_log2) {
#pragma unroll
    for (int rt = 0; rt < kRowTiles; ++rt) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float top = max[rt][half];
#pragma unroll
        for (int kt = 0; kt < kKeyTiles; ++kt) {
          top = fmaxf(top, fmaxf(s[rt][kt][half * 2], s[rt][kt][half * 2 + 1]));
        }
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
        // A row that has seen no key yet: any finite maximum gives zeros instead of inf - inf.
        const float shift = top == -INFINITY ? 0.f : top * scale_log2;
        const float alpha = exp2_fast(fmaf(max[rt][half], scale_log2, -shift));
        max[rt][half] = top;
        float row_sum = 0.f;
#pragma unroll
        for (int kt = 0; kt < kKeyTiles; ++kt) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& value = s[rt][kt][half * 2 + i];
            value = exp2_fast(fmaf(value, scale_log2, -shift));
            row_sum += value;
          }
        }
        sum[rt][half] = sum[rt][half] * alpha + row_sum;
#pragma unroll
        for (int dt = 0; dt < kDimTiles; ++dt) {
          o[rt][dt][half * 2] *= alpha;
          o[rt][dt][half * 2 + 1] *= alpha;
        }
      }
    }
  }

  /// O += P V.
  __device__ __forceinline__ void multiply_pv(const uint4* s_v, int lane) {
    const uint32_t v_lane =
        lane_address<kChunks>(shared_address(s_v), lane / 8 % 2 * 8 + lane % 8, lane / 16);
#pragma unroll
    for (int step = 0; step < kAttendTileKv / 16; ++step) {
      uint32_t p[kRowTiles][4];
#pragma unroll
      for (int rt = 0; rt < kRowTiles; ++rt) {
        const auto& low = s[rt][step * 2];
        const auto& high = s[rt][step * 2 + 1];
        p[rt][0] = pack<Type>(low[0], low[1]);
        p[rt][1] = pack<Type>(low[2], low[3]);
        p[rt][2] = pack<Type>(high[0], high[1]);
        p[rt][3] = pack<Type>(high[2], high[3]);
      }
#pragma unroll
      for (int dt = 0; dt < kDimTiles; dt += 2) {
        uint32_t v[4];
        load_matrix_transposed(v, at_chunk(v_lane, dt) + step * 16 * kRowBytes);
#pragma unroll
        for (int rt = 0; rt < kRowTiles; ++rt) {
          mma<Type>(o[rt][dt], p[rt], v[0], v[1]);
          mma<Type>(o[rt][dt + 1], p[rt], v[2], v[3]);
        }
      }
    }
  }

  /// O through the warp's own rows of shared memory, so that rows leave 16 bytes a thread. Returns
  /// the log-sum-exp of row `lane` of the warp.
  __device__ __forceinline__ float finish(uint4* s_q, int warp_row, int lane, float scale_log2) {
    float lse = 0.f;
#pragma unroll
    for (int rt = 0; rt < kRowTiles; ++rt) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float total = sum[rt][half];
        total += __shfl_xor_sync(~0u, total, 1);
        total += __shfl_xor_sync(~0u, total, 2);
        const float inverse = 1.f / total;
        const int row = warp_row + rt * 16 + half * 8 + lane / 4;
#pragma unroll
        for (int dt = 0; dt < kDimTiles; ++dt) {
          auto* chunk = reinterpret_cast<uint32_t*>(s_q + swizzled<kChunks>(row, dt));
          chunk[lane % 4] =
              pack<Type>(o[rt][dt][half * 2] * inverse, o[rt][dt][half * 2 + 1] * inverse);
        }
        const float top = max[rt][half] == -INFINITY ? 0.f : max[rt][half] * scale_log2;
        const float own = (top + log2f(total)) * 0.6931471805599453f;
        const float row_lse = __shfl_sync(~0u, own, lane % 8 * 4);
        if (lane / 8 == rt * 2 + half) lse = row_lse;
      }
    }
    __syncwarp();
    return lse;
  }
};

/// Grid (ceil(Tq / 128), Hq); tiles with the most keys first.
template <typename Type, int kHeadDim>
__global__ void __launch_bounds__(kAttendThreads, kAttendBlocksPerSm)
    attend_kernel(const __grid_constant__ AttendArgs a) {
  await_previous();
  using Tile = AttendTile<Type, kHeadDim>;
  constexpr int kChunks = Tile::kChunks;
  extern __shared__ __align__(1024) unsigned char raw[];
  auto& shared = *reinterpret_cast<typename Tile::SharedStorage*>(raw);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int head = static_cast<int>(blockIdx.y);
  const int kv_head = head / a.group;
  const int set = head / a.sets.heads_per_set;
  const int32_t* list = list_of(a.sets, set);
  const int n = num_kept(a.sets, a.k_len);
  const int q_pos = a.k_len - a.q_len;
  const int q_first = a.q_first == nullptr ? q_pos : a.q_first[set];

  const int num_tiles = (n - q_first + kAttendTileQ - 1) / kAttendTileQ;
  const int tile = num_tiles - 1 - static_cast<int>(blockIdx.x);
  if (tile < 0) return;
  const int first = q_first + tile * kAttendTileQ;  // list entry of row 0
  const int last = min(first + kAttendTileQ, n);
  const int32_t* blocks = a.blocks.blocks != nullptr ? a.blocks.of_tile(head, tile) : nullptr;
  int kv_end = (last + kAttendTileKv - 1) / kAttendTileKv;
  if (blocks != nullptr) {
    // Of the last block, which holds the last row's own key, no key tile behind that one: all
    // hidden, it would still bring sums to the same maximum once more, and so change their last
    // bits.
    const int before = a.blocks.count(head, tile) - 1;
    kv_end = before < 0 ? 0 : kv_end + (before - blocks[before]) * (kKeyBlock / kAttendTileKv);
  }

  if (threadIdx.x == 0) {
    shared.list = list;
    shared.blocks = blocks;
    shared.n = n;
    shared.kv_head = kv_head;
    shared.first = first;
    shared.clean_v = a.flags[0] != 0;
  }
  __syncthreads();
  const auto& task = const_cast<const volatile typename Tile::SharedStorage&>(shared);
  const auto fetch_kv = [&](int kv_tile) {
    if (kv_tile < kv_end) {
      const int stage = kv_tile % kAttendStages;
      const int entry = task.key_of(kv_tile);
      const int32_t* entries = const_cast<const int32_t*>(task.list);
      const int end = task.n;
      const int kv = task.kv_head;
      Tile::template fetch<kAttendTileKv>(shared.k[stage], a.k, kv, entries, entry, end, 0);
      Tile::template fetch<kAttendTileKv>(shared.v[stage], a.v, kv, entries, entry, end, 0);
    }
    commit_copies();
  };
  Tile::template fetch<kAttendTileQ>(shared.q, a.q, head, list, first, n, q_pos);
  fetch_kv(0);

  Tile t;
  t.clear();
  const int warp_row = warp * 32;
  for (int kv_tile = 0; kv_tile < kv_end; ++kv_tile) {
    wait_copies<0>();
    __syncthreads();  // this tile is there, and everybody has left the one before
    fetch_kv(kv_tile + 1);
    const int stage = kv_tile % kAttendStages;
    const int key = task.key_of(kv_tile);
    if (task.clean_v != 0) Tile::clean(shared.v[stage]);
    t.multiply_qk(shared.q, shared.k[stage], warp_row, lane);
    if (key + kAttendTileKv > task.first) {
      t.mask(key + lane % 4 * 2 - (task.first + warp_row + lane / 4));
    }
    t.softmax(a.scale_log2);
    t.multiply_pv(shared.v[stage], lane);
  }

  wait_copies<0>();  // of Q, where nothing is looked at
  __syncthreads();
  const float lse = t.finish(shared.q, warp_row, lane, a.scale_log2);
  // A lane knows its row's destination, -1 = not to be written.
  int destination = -1;
  if (task.first + warp_row + lane < task.n) {
    const auto* entries = const_cast<const int32_t*>(task.list);
    const int token = position_of(entries, task.first + warp_row + lane);
    destination = token - q_pos;
    if (a.lse.data != nullptr) a.lse.at(destination, head) = lse;
  }
#pragma unroll 4
  for (int i = 0; i < kChunks; ++i) {
    const int row = (i * 32 + lane) / kChunks;
    const int chunk = (i * 32 + lane) % kChunks;
    const int to = __shfl_sync(~0u, destination, row);
    if (to >= 0) {
      reinterpret_cast<uint4*>(a.out.row(to, head))[chunk] =
          shared.q[swizzled<kChunks>(warp_row + row, chunk)];
    }
  }
}

template <typename Type, int kHeadDim>
tsp_status_t launch_attend(const AttendArgs& args, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((args.q_len + kAttendTileQ - 1) / kAttendTileQ),
                  static_cast<unsigned>(args.num_heads));
  return launch("attend", attend_kernel<Type, kHeadDim>, grid, dim3(kAttendThreads),
                attend_shared_bytes(kHeadDim), stream, args);
}

}  // namespace tsp::cuda
