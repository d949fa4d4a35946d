// SPDX-License-Identifier: MIT
// Which queries a set left out, in order: a block looks at 256 rows of one set. As many rows as
// come before them, less the list entries before them, is where its own go.
#include "cuda/attend/leftout_args.h"
#include "cuda/launch.h"
#include "cuda/sets.cuh"

namespace tsp::cuda {
namespace {

constexpr int kThreads = 256;

/// Grid (ceil(Tq / 256), S).
__global__ void __launch_bounds__(kThreads)
    left_out_rows_kernel(const __grid_constant__ LeftOutArgs a) {
  await_previous();
  __shared__ bool s_kept[kThreads];
  __shared__ int32_t s_first;
  __shared__ int32_t s_before[kThreads / 32];  // left-out rows of a warp
  const int tid = static_cast<int>(threadIdx.x);
  const int set = static_cast<int>(blockIdx.y);
  const int begin = static_cast<int>(blockIdx.x) * kThreads;
  const int q_pos = a.k_len - a.q_len;
  const int n = num_kept(a.sets, a.k_len);
  const int32_t* list = list_of(a.sets, set);
  s_kept[tid] = false;
  if (tid < 32) {
    const int32_t first = warp_lower_bound(list, n, q_pos + begin);
    if (tid == 0) s_first = first;
  }
  __syncthreads();
  const int entry = s_first + tid;
  if (entry < n) {
    const int row = position_of(list, entry) - q_pos - begin;
    if (row < kThreads) s_kept[row] = true;
  }
  __syncthreads();
  const bool left_out = begin + tid < a.q_len && !s_kept[tid];
  const uint32_t warp_rows = __ballot_sync(~0u, left_out);
  if (tid % 32 == 0) s_before[tid / 32] = __popc(warp_rows);
  __syncthreads();
  if (!left_out) return;
  int32_t at = begin - (s_first - a.q_first[set]);
  for (int warp = 0; warp < tid / 32; ++warp) at += s_before[warp];
  at += __popc(warp_rows & ((1u << (tid % 32)) - 1));
  a.rows[int64_t{set} * a.q_len + at] = q_pos + begin + tid;
}

}  // namespace

tsp_status_t launch_left_out_rows(const LeftOutArgs& args, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((args.q_len + kThreads - 1) / kThreads),
                  static_cast<unsigned>(args.num_sets));
  return launch("left_out_rows", left_out_rows_kernel, grid, dim3(kThreads), 0, stream, args);
}

}  // namespace tsp::cuda
