// SPDX-License-Identifier: MIT
#include "cuda/attend/vetting.h"

#include "cuda/launch.h"
#include "cuda/sets.cuh"

namespace tsp::cuda {
namespace {

constexpr int kTableThreads = 1024;
constexpr int kWarps = 8;

struct VetTablesArgs {
  const int32_t* in[2];  // of K and V; the second null: as the first
  int32_t* out[2];
  int32_t pages[2];
  uint32_t* hole;
};

/// One block.
__global__ void __launch_bounds__(kTableThreads)
    vet_tables_kernel(const __grid_constant__ VetTablesArgs a) {
  await_previous();
  bool hole = false;
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    if (a.in[which] == nullptr) continue;
    for (int i = static_cast<int>(threadIdx.x); i < a.pages[which]; i += kTableThreads) {
      const int32_t page = a.in[which][i];
      hole |= page < 0;
      a.out[which][i] = max(page, 0);
    }
  }
  const int any = __syncthreads_or(hole);
  if (threadIdx.x == 0) *a.hole = any != 0 ? 1 : 0;
}

/// A warp a list.
__global__ void __launch_bounds__(32 * kWarps)
    vet_blocks_kernel(const __grid_constant__ VetBlocksArgs a, const int tiles) {
  await_previous();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int at = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  if (at >= a.num_sets * tiles) return;
  const int head = at / tiles * a.blocks.heads_per_set, tile = at % tiles;
  const int32_t n = num_kept(a.sets, a.k_len);
  const int32_t* list = a.blocks.of_tile(head, tile);
  int32_t count = 0;
  bool good = true, used = false;
  // Index sets of the list's heads begin their queries at entries of their own.
  const int last_head = head + a.blocks.heads_per_set - 1;
  for (int set = head / a.sets.heads_per_set; set <= last_head / a.sets.heads_per_set; ++set) {
    const int32_t q_first = a.q_first == nullptr ? a.k_len - a.q_len : a.q_first[set];
    const int32_t begin = q_first + tile * kKeyBlock;
    if (begin >= n) continue;  // the caller has no list, and no count, for it
    used = true;
    count = a.blocks.count(head, tile);
    const int32_t first = begin / kKeyBlock, last = (min(n, begin + kKeyBlock) - 1) / kKeyBlock;
    const int32_t own = last - first + 1;
    good = good && count >= own && count <= last + 1 && list[count - own] == first &&
           list[count - 1] == last;
  }
  if (used && good) {
    if (lane == 0) good = list[0] >= 0;
    for (int i = lane + 1; i < count; i += 32) good = good && list[i] > list[i - 1];
    good = __all_sync(~0u, good);
  }
  if (lane != 0) return;
  a.counts[at] = used && good ? count : 0;
  if (!good) *a.broken = 1;
}

int32_t pages_of(const tsp_tensor_t& view, int32_t k_len) {
  return (k_len + view.block_size - 1) / view.block_size;
}

}  // namespace

PageTables place_tables(const tsp_tensor_t& k, const tsp_tensor_t& v, const tsp_batch_t& batch,
                        Scratch& scratch) {
  PageTables tables;
  if (k.block_table == nullptr) return tables;
  tables.k = scratch.take<int32_t>(pages_of(k, longest_k(batch)));
  tables.v = scratch.take<int32_t>(pages_of(v, longest_k(batch)));
  tables.hole = scratch.take<uint32_t>(1);
  return tables;
}

tsp_status_t vet_tables(const PageTables& tables, const Seq& seq, tsp_tensor_t& k, tsp_tensor_t& v,
                        cudaStream_t stream) {
  if (tables.hole == nullptr) return TSP_OK;
  VetTablesArgs a{};
  tsp_tensor_t* const views[] = {&k, &v};
  int32_t* const out[] = {tables.k, tables.v};
  for (int i = 0; i < 2; ++i) {
    a.in[i] = views[i]->block_table + seq.index * views[i]->table_stride;
    a.out[i] = out[i];
    a.pages[i] = pages_of(*views[i], seq.k_len);
    views[i]->block_table = out[i];
    views[i]->table_stride = 0;  // of this sequence alone
  }
  if (a.in[1] == a.in[0] && a.pages[1] == a.pages[0]) {
    a.in[1] = nullptr;
    v.block_table = tables.k;
  }
  a.hole = tables.hole;
  return launch("vet_tables", vet_tables_kernel, dim3(1), dim3(kTableThreads), 0, stream, a);
}

tsp_status_t launch_vet_blocks(const VetBlocksArgs& args, cudaStream_t stream) {
  const int tiles = query_blocks(args.q_len);
  const dim3 grid(static_cast<unsigned>((args.num_sets * tiles + kWarps - 1) / kWarps));
  return launch("vet_blocks", vet_blocks_kernel, grid, dim3(32 * kWarps), 0, stream, args, tiles);
}

}  // namespace tsp::cuda
