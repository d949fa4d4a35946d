// SPDX-License-Identifier: MIT
// Average pooling of the window's weights: the last step of score. Padding zeros count in the
// divisor.
#include "cuda/launch.h"
#include "cuda/score/score.h"

namespace tsp::cuda {
namespace {

constexpr int kPoolThreads = 256;

/// Grid (ceil(P / 256), Hq).
__global__ void __launch_bounds__(kPoolThreads) pool_kernel(const __grid_constant__ ScoreArgs a) {
  await_previous();
  const int token = static_cast<int>(blockIdx.x) * kPoolThreads + static_cast<int>(threadIdx.x);
  const int head = static_cast<int>(blockIdx.y);
  if (token >= a.prefix_len) return;
  const float* mass = a.mass + int64_t{head} * a.prefix_len;
  const int half = a.pool / 2;
  const int last = static_cast<int>(min(int64_t{token} + half, int64_t{a.prefix_len} - 1));
  float sum = 0.f;
  for (int t = max(token - half, 0); t <= last; ++t) sum += mass[t];
  a.scores.at(token, head) = sum / static_cast<float>(a.pool);
}

}  // namespace

tsp_status_t launch_pool(const ScoreArgs& args, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(args.prefix_len, kPoolThreads)),
                  static_cast<unsigned>(args.group * args.num_kv_heads));
  return launch("pool", pool_kernel, grid, dim3(kPoolThreads), 0, stream, args);
}

}  // namespace tsp::cuda
