// SPDX-License-Identifier: MIT
// Average pooling of the window's weights: the last step of score. Padding zeros count in the
// divisor.
#include "cuda/launch.h"
#include "cuda/score/score.h"

namespace tsp::cuda {
namespace {

constexpr int kPoolThreads = 256;
constexpr int kPoolTokens = 4 * kPoolThreads;  // of a block
constexpr int kNearReach = 3;                  // of the pool that is used most, 7

/// Four weights from `token` on, whose address is a multiple of 16 bytes; 0 beyond the ends.
__device__ __forceinline__ float4 load_four(const float* mass, int token, int count) {
  if (token >= 0 && token + 4 <= count) return *reinterpret_cast<const float4*>(mass + token);
  const auto one = [&](int t) { return t >= 0 && t < count ? mass[t] : 0.f; };
  return make_float4(one(token), one(token + 1), one(token + 2), one(token + 3));
}

/// A pool of 7, in registers: a thread has four neighbours and the four on each side. Grid
/// (ceil((P + 3) / 1024), Hq).
__global__ void __launch_bounds__(kPoolThreads)
    near_pool_kernel(const __grid_constant__ ScoreArgs a) {
  await_previous();
  const int head = static_cast<int>(blockIdx.y);
  const float* mass = a.mass + int64_t{head} * a.prefix_len;
  // Rows follow each other without a gap: the first thread of one may begin before it.
  const int token = static_cast<int>(blockIdx.x * kPoolThreads + threadIdx.x) * 4 -
                    static_cast<int>(reinterpret_cast<uintptr_t>(mass) / sizeof(float) % 4);
  if (token >= a.prefix_len) return;
  const float4 before = load_four(mass, token - 4, a.prefix_len);
  const float4 own = load_four(mass, token, a.prefix_len);
  const float4 after = load_four(mass, token + 4, a.prefix_len);
  const float near[] = {before.x, before.y, before.z, before.w, own.x,   own.y,
                        own.z,    own.w,    after.x,  after.y,  after.z, after.w};
  float pooled[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float sum = 0.f;
#pragma unroll
    for (int t = -kNearReach; t <= kNearReach; ++t) sum += near[4 + i + t];
    pooled[i] = sum / static_cast<float>(2 * kNearReach + 1);
  }
  float* out = &a.scores.at(token, head);
  if (a.scores.token_stride == 1 && reinterpret_cast<uintptr_t>(out) % sizeof(float4) == 0 &&
      token >= 0 && token + 4 <= a.prefix_len) {
    *reinterpret_cast<float4*>(out) = make_float4(pooled[0], pooled[1], pooled[2], pooled[3]);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (token + i >= 0 && token + i < a.prefix_len) a.scores.at(token + i, head) = pooled[i];
  }
}

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
  const auto heads = static_cast<unsigned>(args.group * args.num_kv_heads);
  if (args.pool / 2 == kNearReach) {
    const auto blocks = static_cast<unsigned>(ceil_div(args.prefix_len + 3, kPoolTokens));
    return launch("pool", near_pool_kernel, dim3(blocks, heads), dim3(kPoolThreads), 0, stream,
                  args);
  }
  const dim3 grid(static_cast<unsigned>(ceil_div(args.prefix_len, kPoolTokens)), heads);
  const int reach = args.pool / 2 <= kWidestShared ? args.pool / 2 : -1;
  const size_t shared_bytes = reach < 0 ? 0 : sizeof(float) * (kPoolTokens + 2 * size_t(reach));
  return launch("pool", pool_kernel, grid, dim3(kPoolThreads), shared_bytes, stream, args, reach);
}

}  // namespace tsp::cuda
