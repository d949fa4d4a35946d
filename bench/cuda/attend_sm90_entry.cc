// SPDX-License-Identifier: MIT
// The warpgroup attention kernel behind one C function, for attend_sm90_peers.py. In the root of
// the repository, after cmake --preset cuda:
//   nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -Isrc -Iinclude -Ibuild/cuda/include
//     -cudart static -shared -Xcompiler -fPIC bench/cuda/attend_sm90_entry.cc
//     src/cuda/attend/sm90/*.c* src/cuda/sm90/row_map.cc src/core/error.cc -o attend_sm90.so
#include <cmath>

#include "cuda/attend/sm90/attend_sm90.h"

/// Causal attention of one sequence: q and out [length, heads, D], k and v [length, kv_heads, D],
/// lse [length, heads], tickets [2] zero.
extern "C" int attend_sm90(void* q, void* k, void* v, void* out, float* lse, int32_t* tickets,
                           int32_t length, int32_t heads, int32_t kv_heads, int32_t head_dim,
                           int32_t bf16, int32_t num_sms, cudaStream_t stream) {
  const auto rows = [&](void* data, int32_t of_heads) {
    tsp::cuda::Rows view;
    view.data = static_cast<uint16_t*>(data);
    view.token_stride = int64_t{of_heads} * head_dim;
    view.head_stride = head_dim;
    return view;
  };
  tsp::cuda::AttendSm90Params p;
  p.q = rows(q, heads);
  p.k = rows(k, kv_heads);
  p.v = rows(v, kv_heads);
  p.out = rows(out, heads);
  p.lse = {lse, heads, 1};
  p.tickets = tickets;
  p.q_len = p.k_len = p.k_rows = length;
  p.num_heads = heads;
  p.heads_per_unit = heads / kv_heads;
  p.scale_log2 = 1.4426950408889634f / std::sqrt(static_cast<float>(head_dim));
  p.num_sms = num_sms;
  p.head_dim = head_dim;
  p.bf16 = bf16 != 0;
  return launch_attend_sm90(p, stream);
}
