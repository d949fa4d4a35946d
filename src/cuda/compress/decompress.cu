// SPDX-License-Identifier: MIT
// decompress: a block owns 256 query rows of one head, finds the list entries that fall into them
// and writes every row once: a result where a token was kept, zeros where it was left out.
#include "cuda/compress/compress.h"
#include "cuda/launch.h"
#include "cuda/sets.cuh"

namespace tsp::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlockTokens = 256;
constexpr int kRowsInFlight = 4;

/// Grid: heads * token blocks, heads fastest: neighbours in memory are written together.
template <int kChunks>
__global__ void __launch_bounds__(kThreads)
    decompress_kernel(const __grid_constant__ DecompressArgs a) {
  await_previous();
  constexpr int kLanes = kThreads / kChunks;
  __shared__ int32_t s_entry[kBlockTokens];  // list entry of a token, -1 = left out
  __shared__ int32_t s_first;
  const int local_head = static_cast<int>(blockIdx.x) % a.num_heads;
  const int head = a.head_begin + local_head;
  const int begin = static_cast<int>(blockIdx.x) / a.num_heads * kBlockTokens;  // query row
  const int set = head / a.sets.heads_per_set;
  const int q_pos = a.k_len - a.q_len;
  const int n = num_kept(a.sets, a.k_len);
  const int32_t* list = list_of(a.sets, set);
  const int tid = static_cast<int>(threadIdx.x);

  s_entry[tid] = -1;
  if (tid < 32) {
    const int32_t first = warp_lower_bound(list, n, q_pos + begin);
    if (tid == 0) s_first = first;
  }
  __syncthreads();
  const int entry = s_first + tid;
  if (entry < n) {
    const int row = position_of(list, entry) - q_pos - begin;
    if (row < kBlockTokens) s_entry[row] = entry;
  }
  __syncthreads();

  const int shift = a.in_end > 0 ? a.in_end - n : 0;
  if (a.lse_out.data != nullptr && begin + tid < a.q_len) {
    const int own = s_entry[tid];
    if (own < 0) {
      if (a.clear_dropped) a.lse_out.at(begin + tid, head) = -INFINITY;
    } else if (a.lse_in.data != nullptr) {
      a.lse_out.at(begin + tid, head) = a.lse_in.at(own + shift, local_head);
    }
  }
  // Several rows at once: all loads before the first store, which might alias them.
  const int chunk = tid % kChunks;
  for (int batch = tid / kChunks; batch < kBlockTokens; batch += kLanes * kRowsInFlight) {
    uint4 data[kRowsInFlight];
    bool write[kRowsInFlight];
#pragma unroll
    for (int i = 0; i < kRowsInFlight; ++i) {
      const int row = batch + i * kLanes;
      const int own = s_entry[row];
      write[i] = begin + row < a.q_len && (own >= 0 ? a.in.data != nullptr : a.clear_dropped);
      data[i] = make_uint4(0u, 0u, 0u, 0u);
      if (write[i] && own >= 0) {
        data[i] = __ldcs(reinterpret_cast<const uint4*>(a.in.row(own + shift, local_head)) + chunk);
      }
    }
#pragma unroll
    for (int i = 0; i < kRowsInFlight; ++i) {
      if (!write[i]) continue;
      __stcs(reinterpret_cast<uint4*>(a.out.row(begin + batch + i * kLanes, head)) + chunk,
             data[i]);
    }
  }
}

}  // namespace

tsp_status_t launch_decompress(const DecompressArgs& args, int32_t head_dim, cudaStream_t stream) {
  const int64_t blocks = (int64_t{args.q_len} + kBlockTokens - 1) / kBlockTokens * args.num_heads;
  const dim3 grid(static_cast<unsigned>(blocks));
  return head_dim == 64
             ? launch("decompress", decompress_kernel<8>, grid, dim3(kThreads), 0, stream, args)
             : launch("decompress", decompress_kernel<16>, grid, dim3(kThreads), 0, stream, args);
}

}  // namespace tsp::cuda
