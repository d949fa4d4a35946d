// SPDX-License-Identifier: MIT
// compress: the kept rows side by side, 16 bytes a thread. K and V come straight from the KV heads;
// blocks of the query heads that share one run next to each other, so that its rows come from L2.
#include "cuda/compress/compress.h"

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/sets.cuh"

namespace tsp::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsPerThread = 4;

template <int kChunks>
constexpr int kBlockRows = kThreads / kChunks* kRowsPerThread;

__device__ __forceinline__ uint4* chunk_of(const Rows& rows, int token, int head, int chunk) {
  return reinterpret_cast<uint4*>(rows.row(token, head)) + chunk;
}

/// Replaces the halves that are not finite by 0; true if there were any.
__device__ __forceinline__ bool clean(uint32_t& word, uint32_t mask) {
  const uint32_t low = mask & 0xffffu, high = mask & 0xffff0000u;
  const bool bad_low = (word & low) == low, bad_high = (word & high) == high;
  if (bad_low) word &= 0xffff0000u;
  if (bad_high) word &= 0x0000ffffu;
  return bad_low || bad_high;
}

/// Copies entries [row, row + step, ...) below `end`; `source` maps an entry to a token, negative =
/// zeros.
template <typename Source>
__device__ __forceinline__ void copy_rows(const Rows& in, int in_head, const Rows& out,
                                          int out_head, const int (&token)[kRowsPerThread],
                                          const bool (&write)[kRowsPerThread], int chunk,
                                          Source&& out_row) {
  uint4 data[kRowsPerThread];
#pragma unroll
  for (int i = 0; i < kRowsPerThread; ++i) {
    data[i] = make_uint4(0u, 0u, 0u, 0u);
    if (write[i] && token[i] >= 0) data[i] = *chunk_of(in, token[i], in_head, chunk);
  }
#pragma unroll
  for (int i = 0; i < kRowsPerThread; ++i) {
    if (write[i]) *chunk_of(out, out_row(i), out_head, chunk) = data[i];
  }
}

/// Grid: tiles * units, units of one KV head fastest, then tiles, then KV heads.
template <int kChunks>
__global__ void __launch_bounds__(kThreads)
    compress_kernel(const __grid_constant__ CompressArgs a, const int num_tiles,
                    const int adjacent) {
  await_previous();
  constexpr int kLanes = kThreads / kChunks;
  const int block = static_cast<int>(blockIdx.x);
  const int cluster = block / (num_tiles * adjacent);
  const int rest = block - cluster * num_tiles * adjacent;
  const int local_unit = cluster * adjacent + rest % adjacent;
  const int begin = rest / adjacent * kBlockRows<kChunks>;

  const int unit = a.units.begin + local_unit;
  const int set = unit * a.units.q_heads / a.sets.heads_per_set;
  const int n = num_kept(a.sets, a.k_len);
  const int padded = min(n + a.pad_rows, a.capacity);
  if (begin >= padded) return;
  const int32_t* list = list_of(a.sets, set);
  const int chunk = static_cast<int>(threadIdx.x) % kChunks;
  const int first = begin + static_cast<int>(threadIdx.x) / kChunks;

  int token[kRowsPerThread];
  bool kept[kRowsPerThread], padding[kRowsPerThread];
#pragma unroll
  for (int i = 0; i < kRowsPerThread; ++i) {
    const int entry = first + i * kLanes;
    kept[i] = entry < n;
    padding[i] = entry < padded;
    token[i] = kept[i] ? position_of(list, entry) : -1;
  }
  const auto same_row = [&](int i) { return first + i * kLanes; };
  const int kv_head = a.units.kv_head(unit);
  if (a.k_out.data != nullptr) {
    copy_rows(a.k, kv_head, a.k_out, local_unit, token, padding, chunk, same_row);
  }
  if (a.v.data != nullptr) {
    uint4 data[kRowsPerThread];
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      data[i] = make_uint4(0u, 0u, 0u, 0u);
      if (kept[i]) data[i] = *chunk_of(a.v, token[i], kv_head, chunk);
    }
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      if (a.flags != nullptr) {
        const uint32_t mask = a.exponent_mask;
        const bool bad[] = {clean(data[i].x, mask), clean(data[i].y, mask), clean(data[i].z, mask),
                            clean(data[i].w, mask)};
        if (bad[0] || bad[1] || bad[2] || bad[3]) {
          a.flags[0] = 1;
          a.flags[1 + unit * a.flag_stride + same_row(i) / kFlagRows] = 1;
        }
      }
      if (a.v_out.data != nullptr && padding[i]) {
        *chunk_of(a.v_out, same_row(i), local_unit, chunk) = data[i];
      }
    }
  }
  if (a.q_out.data == nullptr) return;
  const int shift = a.q_end > 0 ? a.q_end - n : 0;
  bool wanted[kRowsPerThread];
#pragma unroll
  for (int i = 0; i < kRowsPerThread; ++i) {
    token[i] -= a.q_pos;  // negative: older than the first query
    wanted[i] = kept[i] && (a.q_end == 0 || token[i] >= 0);
  }
  for (int h = 0; h < a.units.q_heads; ++h) {
    copy_rows(a.q, unit * a.units.q_heads + h, a.q_out, local_unit * a.units.q_heads + h, token,
              wanted, chunk, [&](int i) { return same_row(i) + shift; });
  }
}

/// The first block knows the lengths, all clear flags.
__global__ void __launch_bounds__(kThreads) lengths_kernel(const __grid_constant__ LengthArgs a) {
  await_previous();
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < a.num_flags; i += stride) {
    a.flags[i] = 0;
  }
  if (blockIdx.x > 0) return;
  const int n = num_kept(a.sets, a.k_len);
  for (int set = static_cast<int>(threadIdx.x); set < a.num_sets;
       set += static_cast<int>(blockDim.x)) {
    a.q_first[set] = a.q_pos == 0 ? 0 : lower_bound(list_of(a.sets, set), n, a.q_pos);
  }
  if (threadIdx.x == 0) {
    *a.q_lens = a.q_len;
    *a.kv_lens = n;
  }
}

int32_t greatest_common_divisor(int32_t a, int32_t b) {
  return b == 0 ? a : greatest_common_divisor(b, a % b);
}

template <int kChunks>
tsp_status_t launch_chunks(const CompressArgs& a, cudaStream_t stream) {
  const int64_t rows = std::min<int64_t>(int64_t{a.k_len} + a.pad_rows, a.capacity);
  const int num_tiles = static_cast<int>((rows + kBlockRows<kChunks> - 1) / kBlockRows<kChunks>);
  const int adjacent = greatest_common_divisor(a.units.per_kv, a.units.count);
  const int64_t grid = int64_t{num_tiles} * a.units.count;
  return launch("compress", compress_kernel<kChunks>, dim3(static_cast<unsigned>(grid)),
                dim3(kThreads), 0, stream, a, num_tiles, adjacent);
}

}  // namespace

tsp_status_t launch_compress(const CompressArgs& args, int32_t head_dim, cudaStream_t stream) {
  return head_dim == 64 ? launch_chunks<8>(args, stream) : launch_chunks<16>(args, stream);
}

tsp_status_t launch_lengths(const LengthArgs& args, cudaStream_t stream) {
  const int64_t blocks = std::clamp<int64_t>(args.num_flags / (4 * kThreads), 1, 64);
  return launch("lengths", lengths_kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0,
                stream, args);
}

}  // namespace tsp::cuda
