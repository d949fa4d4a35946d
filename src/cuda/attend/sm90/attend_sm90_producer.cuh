// SPDX-License-Identifier: MIT
// The producer warpgroup: warp 0 hands out tasks and brings K and V, the others gather Q.
#pragma once

#include "cuda/attend/sm90/attend_sm90_tile.cuh"
#include "cuda/sm90/wgmma.cuh"

namespace tsp::cuda {

template <int kHeadDim, int kConsumers>
struct Sm90Producer {
  using Tile = Sm90Tile<kHeadDim, kConsumers>;
  using Shared = typename Tile::SharedStorage;

  const AttendSm90Args& a;
  Shared& shared;
  RingPlace<kSm90Stages> k_at, v_at;
  RingPlace<kSm90Tasks> task_at;

  __device__ __forceinline__ Sm90Producer(const AttendSm90Args& args, Shared& storage)
      : a(args), shared(storage) {}

  /// The task of an item; false: none of its rows exist.
  __device__ __forceinline__ bool task_of(int32_t item, Sm90Task& task) const {
    const AttendSm90Params& p = a.p;
    const Sm90Work work = shared.order.at(item);
    task.head = p.head_begin + work.head;
    task.first = first_query(p, task.head / p.sets.heads_per_set) + work.tile * Tile::kTileQ;
    if (task.first >= shared.n) return false;
    const int32_t end = min(shared.n, task.first + Tile::kTileQ);
    const int32_t every = (end + kSm90TileKv - 1) / kSm90TileKv;
    const bool lists = p.blocks.blocks != nullptr;
    task.num_steps = lists ? p.blocks.count(task.head, work.tile) : every;
    // Lists have the blocks on the diagonal, so these are the same with lists as without.
    task.num_masked = min(task.num_steps, every - min(every, (task.first + 1) / kSm90TileKv));
    return true;
  }

  __device__ __forceinline__ void bring(uint4* stage, const CUtensorMap& map, int32_t block,
                                        int32_t unit, uint64_t* full) {
    arrive_expecting(full, Tile::kKvBytes);
#pragma unroll
    for (int c = 0; c < Tile::kBlocks; ++c) {
      copy_tile(stage + c * (Tile::kKvBlockBytes / 16), &map, {block * kSm90TileKv, c, unit}, full);
    }
  }
  __device__ __forceinline__ void bring_k(int32_t block, int32_t unit) {
    wait_for(&shared.k_empty[k_at.index], k_at.parity ^ 1);
    shared.key_block[k_at.index] = block;
    bring(shared.k[k_at.index], a.k_map, block, unit, &shared.k_full[k_at.index]);
    k_at.advance();
  }
  __device__ __forceinline__ void bring_v(int32_t block, int32_t unit) {
    wait_for(&shared.v_empty[v_at.index], v_at.parity ^ 1);
    bring(shared.v[v_at.index], a.v_map, block, unit, &shared.v_full[v_at.index]);
    v_at.advance();
  }

  /// K and V of a task, latest keys first: every row meets keys that it sees before the maximum
  /// matters. K runs a step ahead of V, as the consumers do.
  __device__ __forceinline__ void bring_all(const Sm90Task& task) {
    const AttendSm90Params& p = a.p;
    const int32_t unit = (task.head - p.head_begin) / p.heads_per_unit;
    const int32_t* list = nullptr;
    if (p.blocks.blocks != nullptr) {
      const int32_t row = task.first - first_query(p, task.head / p.sets.heads_per_set);
      list = p.blocks.of_tile(task.head, row / Tile::kTileQ);
    }
    int32_t ahead = 0;  // the entry that comes next, read a step early
    if (list != nullptr && task.num_steps > 0) ahead = list[task.num_steps - 1];
    int32_t last = 0;
#pragma unroll 1  // unrolled, it spills
    for (int32_t left = task.num_steps - 1; left >= 0; --left) {
      const int32_t block = list == nullptr ? left : ahead;
      if (list != nullptr && left > 0) ahead = list[left - 1];
      bring_k(block, unit);
      if (left < task.num_steps - 1) bring_v(last, unit);
      last = block;
    }
    if (task.num_steps > 0) bring_v(last, unit);
  }

  /// One thread.
  __device__ __forceinline__ void hand_out() {
    const AttendSm90Params& p = a.p;
    prefetch_map(&a.k_map);
    prefetch_map(&a.v_map);
    shared.n = num_kept(p.sets, p.k_len);
    shared.order = make_sm90_order(p.num_heads, p.heads_per_unit, min(shared.n, p.q_len), shared.n,
                                   kHeadDim, Tile::kTileQ);
    int32_t next = static_cast<int32_t>(blockIdx.x);
    for (;;) {
      const int32_t item = next;
      next = atomicAdd(p.tickets, 1) + static_cast<int32_t>(gridDim.x);  // arrives meanwhile
      Sm90Task task{-1, 0, 0, 0};
      if (item < shared.order.num_items() && !task_of(item, task)) continue;
      wait_for(&shared.task_empty[task_at.index], task_at.parity ^ 1);
      shared.task[task_at.index] = task;
      arrive(&shared.task_full[task_at.index]);
      task_at.advance();
      if (task.head < 0) break;
      bring_all(task);
    }
    // The last block leaves the counters as it found them.
    __threadfence();
    if (atomicAdd(p.tickets + 1, 1) == static_cast<int32_t>(gridDim.x) - 1) {
      p.tickets[0] = 0;
      p.tickets[1] = 0;
    }
  }

  /// kSm90QueryWarps warps: rows of Q by their list entries, zeros beyond the last.
  __device__ __forceinline__ void gather_queries() {
    const AttendSm90Params& p = a.p;
    const int32_t q_pos = p.k_len - p.q_len;
    RingPlace<1> q_at;
    for (;;) {
      wait_for(&shared.task_full[task_at.index], task_at.parity);
      const Sm90Task task = shared.task[task_at.index];
      arrive_warp(&shared.task_empty[task_at.index]);
      task_at.advance();
      if (task.head < 0) return;
      if (task.num_steps == 0) continue;
      const int32_t* list = list_of(p.sets, task.head / p.sets.heads_per_set);
      wait_for(&shared.q_empty, q_at.parity ^ 1);
      q_at.advance();
#pragma unroll 1
      for (int i = static_cast<int>(threadIdx.x) % 128 - 32; i < Tile::kTileQ * Tile::kChunks;
           i += kSm90QueryWarps * 32) {
        const int row = i / Tile::kChunks;
        const int chunk = i % Tile::kChunks;
        const bool there = task.first + row < shared.n;
        const int32_t token = there ? position_of(list, task.first + row) - q_pos : 0;
        uint4* to = shared.q + (chunk / 8 * Tile::kTileQ + row) * 8 + ((chunk ^ row) & 7);
        copy_async(to, p.q.row(token, task.head) + chunk * 8, there);
      }
      commit_copies();
      wait_copies<0>();
      if constexpr (!Tile::kShape.queries_in_registers()) fence_for_wgmma();
      arrive(&shared.q_full);
    }
  }
};

}  // namespace tsp::cuda
