// SPDX-License-Identifier: MIT
// decompress: every row is written once, a result where a token was kept, zeros where it was left
// out. First all results, then all zeros: memory writes faster while nobody reads from it.
#include "cuda/compress/compress.h"
#include "cuda/launch.h"
#include "cuda/sets.cuh"

namespace tsp::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlockTokens = 256;
constexpr int kRowsInFlight = 4;

/// The list entries of a block's tokens.
struct Entries {
  int first;  // the first entry that is not before them
  int row;    // this thread's entry, first + threadIdx.x: its row of the block, or none of it
  __device__ bool inside() const { return row < kBlockTokens; }
};
__device__ __forceinline__ Entries find_entries(const DecompressArgs& a, int set, int begin,
                                                int n) {
  __shared__ int32_t s_first;
  const int32_t* list = list_of(a.sets, set);
  const int tid = static_cast<int>(threadIdx.x);
  const int position = a.k_len - a.q_len + begin;
  if (tid < 32) {
    const int32_t first = warp_lower_bound(list, n, position);
    if (tid == 0) s_first = first;
  }
  __syncthreads();
  const int entry = s_first + tid;
  return {s_first, entry < n ? position_of(list, entry) - position : kBlockTokens};
}

template <int kChunks>
__device__ __forceinline__ uint4* chunk_of(const Rows& rows, int token, int head) {
  return reinterpret_cast<uint4*>(rows.row(token, head)) + static_cast<int>(threadIdx.x) % kChunks;
}

/// Results of 256 tokens of a head.
template <int kChunks>
__device__ void copy_kept(const DecompressArgs& a, int local_head, int begin, int n,
                          int32_t* s_row) {
  constexpr int kLanes = kThreads / kChunks;
  const int head = a.head_begin + local_head;
  const Entries entries = find_entries(a, head / a.sets.heads_per_set, begin, n);
  s_row[threadIdx.x] = entries.row;
  const int count = __syncthreads_count(entries.inside());
  const int first = entries.first + (a.in_end > 0 ? a.in_end - n : 0);
  // Several rows at once: all loads before the first store, which might alias them.
  for (int batch = static_cast<int>(threadIdx.x) / kChunks; batch < count;
       batch += kLanes * kRowsInFlight) {
    uint4 data[kRowsInFlight];
#pragma unroll
    for (int i = 0; i < kRowsInFlight; ++i) {
      const int at = batch + i * kLanes;
      if (at < count) data[i] = __ldcs(chunk_of<kChunks>(a.in, first + at, local_head));
    }
#pragma unroll
    for (int i = 0; i < kRowsInFlight; ++i) {
      const int at = batch + i * kLanes;
      if (at < count) __stcs(chunk_of<kChunks>(a.out, begin + s_row[at], head), data[i]);
    }
  }
}

/// Zeros and log-sum-exp of 256 tokens of a head.
template <int kChunks>
__device__ void clear_dropped(const DecompressArgs& a, int local_head, int begin, int n,
                              int32_t* s_entry) {
  constexpr int kLanes = kThreads / kChunks;
  const int head = a.head_begin + local_head;
  const int tid = static_cast<int>(threadIdx.x);
  s_entry[tid] = -1;
  const Entries entries = find_entries(a, head / a.sets.heads_per_set, begin, n);  // synchronises
  if (entries.inside()) s_entry[entries.row] = entries.first + tid;
  __syncthreads();
  if (a.lse_out.data != nullptr && begin + tid < a.q_len) {
    const int own = s_entry[tid];
    if (own < 0) {
      if (a.clear_dropped) a.lse_out.at(begin + tid, head) = -INFINITY;
    } else if (a.lse_in.data != nullptr) {
      const int shift = a.in_end > 0 ? a.in_end - n : 0;
      a.lse_out.at(begin + tid, head) = a.lse_in.at(own + shift, local_head);
    }
  }
  if (!a.clear_dropped) return;
#pragma unroll
  for (int i = 0; i < kBlockTokens / kLanes; ++i) {
    const int row = tid / kChunks + i * kLanes;
    if (s_entry[row] >= 0 || begin + row >= a.q_len) continue;
    __stcs(chunk_of<kChunks>(a.out, begin + row, head), make_uint4(0u, 0u, 0u, 0u));
  }
}

/// Blocks of 256 tokens times heads, heads fastest: neighbours in memory are written together. The
/// first `kept_blocks` copy results, from the last token to the first: what was written last may
/// still be in L2. The others write zeros.
template <int kChunks>
__global__ void __launch_bounds__(kThreads)
    decompress_kernel(const __grid_constant__ DecompressArgs a, const int kept_blocks) {
  await_previous();
  __shared__ int32_t s_words[kBlockTokens];
  const int n = num_kept(a.sets, a.k_len);
  const int block = static_cast<int>(blockIdx.x);
  if (block < kept_blocks) {
    const int from_last = kept_blocks - 1 - block;
    copy_kept<kChunks>(a, from_last % a.num_heads, from_last / a.num_heads * kBlockTokens, n,
                       s_words);
  } else {
    const int rest = block - kept_blocks;
    clear_dropped<kChunks>(a, rest % a.num_heads, rest / a.num_heads * kBlockTokens, n, s_words);
  }
}

}  // namespace

tsp_status_t launch_decompress(const DecompressArgs& args, int32_t head_dim, cudaStream_t stream) {
  const int blocks = (args.q_len + kBlockTokens - 1) / kBlockTokens * args.num_heads;
  const int kept = args.in.data != nullptr ? blocks : 0;
  const int rest = args.clear_dropped || args.lse_out.data != nullptr ? blocks : 0;
  if (kept + rest == 0) return TSP_OK;
  const dim3 grid(static_cast<unsigned>(kept + rest));
  return head_dim == 64 ? launch("decompress", decompress_kernel<8>, grid, dim3(kThreads), 0,
                                 stream, args, kept)
                        : launch("decompress", decompress_kernel<16>, grid, dim3(kThreads), 0,
                                 stream, args, kept);
}

}  // namespace tsp::cuda
