// SPDX-License-Identifier: MIT
// Average pooling of the window's weights: the last step of score. Padding zeros count in the
// divisor.
#include "cuda/launch.h"
#include "cuda/score/score.h"

namespace tsp::cuda {
namespace {

constexpr int kPoolThreads = 256;
constexpr int kPoolTokens = 4 * kPoolThreads;  // of a block

/// A block's weights with what the pool reaches on both sides go through shared memory; `reach` -1:
/// the pool is too wide for it, every token reads its own. Grid (ceil(P / 1024), Hq).
__global__ void __launch_bounds__(kPoolThreads)
    pool_kernel(const __grid_constant__ ScoreArgs a, const int reach) {
  await_previous();
  extern __shared__ float s_mass[];
  const int begin = static_cast<int>(blockIdx.x) * kPoolTokens;
  const int head = static_cast<int>(blockIdx.y);
  const int tid = static_cast<int>(threadIdx.x);
  const float* mass = a.mass + int64_t{head} * a.prefix_len;
  const auto divisor = static_cast<float>(a.pool);
  if (reach < 0) {
    for (int i = begin + tid; i < min(begin + kPoolTokens, a.prefix_len); i += kPoolThreads) {
      const int half = a.pool / 2;
      const int last = static_cast<int>(min(int64_t{i} + half, int64_t{a.prefix_len} - 1));
      float sum = 0.f;
      for (int t = max(i - half, 0); t <= last; ++t) sum += mass[t];
      a.scores.at(i, head) = sum / divisor;
    }
    return;
  }
#pragma unroll 4
  for (int i = tid; i < kPoolTokens + 2 * reach; i += kPoolThreads) {
    const int token = begin - reach + i;
    s_mass[i] = token >= 0 && token < a.prefix_len ? mass[token] : 0.f;
  }
  __syncthreads();
#pragma unroll
  for (int i = tid; i < kPoolTokens; i += kPoolThreads) {
    if (begin + i >= a.prefix_len) return;
    float sum = 0.f;
    for (int t = 0; t <= 2 * reach; ++t) sum += s_mass[i + t];
    a.scores.at(begin + i, head) = sum / divisor;
  }
}

}  // namespace

tsp_status_t launch_pool(const ScoreArgs& args, cudaStream_t stream) {
  constexpr int kWidestShared = 4096;
  const dim3 grid(static_cast<unsigned>(ceil_div(args.prefix_len, kPoolTokens)),
                  static_cast<unsigned>(args.group * args.num_kv_heads));
  const int reach = args.pool / 2 <= kWidestShared ? args.pool / 2 : -1;
  const size_t shared_bytes = reach < 0 ? 0 : sizeof(float) * (kPoolTokens + 2 * size_t(reach));
  return launch("pool", pool_kernel, grid, dim3(kPoolThreads), shared_bytes, stream, args, reach);
}

}  // namespace tsp::cuda
