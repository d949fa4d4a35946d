// SPDX-License-Identifier: MIT
// What a call kept and computed, added up where the counts are: a warp a set, which looks for two
// entries of its list and adds the rest in closed form.
#include "core/pairs.h"
#include "cuda/launch.h"
#include "cuda/select/select.h"
#include "cuda/sets.cuh"

namespace tsp::cuda {
namespace {

__device__ __forceinline__ void add(int64_t* sum, int64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(sum), static_cast<unsigned long long>(value));
}

/// Grid (S).
__global__ void __launch_bounds__(32) tally_kernel(const __grid_constant__ TallyTask t) {
  await_previous();
  const int lane = static_cast<int>(threadIdx.x);
  const int set = static_cast<int>(blockIdx.x);
  const int32_t q_pos = t.k_len - t.q_len;
  const int32_t kept = num_kept(t.sets, t.k_len);
  int64_t pairs = 0;
  if (kept >= t.k_len) {
    pairs = clipped_sum(q_pos, t.k_len, t.k_len);
  } else {
    const int32_t* list = list_of(t.sets, set);
    const int32_t first = warp_lower_bound(list, kept, q_pos);
    const int32_t far = max(first, warp_lower_bound(list, kept, t.near));
    int64_t nearer = 0;  // positions below `near`
    for (int32_t entry = first + lane; entry < far; entry += 32) nearer += list[entry] + 1;
    for (int other = 16; other > 0; other /= 2) nearer += __shfl_xor_sync(~0u, nearer, other);
    pairs = pairs_of_list(q_pos, t.k_len, t.near, first, far, kept, nearer);
  }
  if (lane != 0) return;
  add(t.tally + 1, pairs * t.sets.heads_per_set);
  if (set == 0) add(t.tally, kept);
}

}  // namespace

tsp_status_t launch_tally(const TallyTask& task, int32_t num_sets, cudaStream_t stream) {
  return launch("tally", tally_kernel, dim3(static_cast<unsigned>(num_sets)), dim3(32), 0, stream,
                task);
}

}  // namespace tsp::cuda
