// SPDX-License-Identifier: MIT
// Kernels read V with every NaN and infinity replaced by 0, because a masked weight of 0 would turn
// them into NaN in rows that do not see them. Here they reach the rows that do: a warp a row, the
// sum of what the row's keys hold that is not finite. Runs only where V has such values; or where
// the caller's lists or tables broke a rule, which must not look like a result.
#include "cuda/attend/attend_args.h"
#include "cuda/launch.h"
#include "cuda/ptx.cuh"
#include "cuda/sets.cuh"

namespace tsp::cuda {
namespace {

static_assert(kFlagRows == kKeyBlock, "a flag is of a block");
constexpr int kWarps = 8;
constexpr int kMaxPerLane = 4;  // channels of a lane: head dim up to 128

template <typename Type>
__device__ __forceinline__ void poison_row(const PoisonArgs& p, int head, int q_first, int entry) {
  const AttendArgs& a = p.attend;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int32_t* list = list_of(a.sets, head / a.sets.heads_per_set);
  const uint32_t* flags = p.flags + 1 + head / p.heads_per_unit * p.flag_stride;
  float sum[kMaxPerLane] = {};
  const int tile = (entry - q_first) / kKeyBlock;
  const bool listed = a.blocks.blocks != nullptr;
  const int count = listed ? a.blocks.count(head, tile) : entry / kFlagRows + 1;
  for (int i = 0; i < count; ++i) {
    const int block = listed ? a.blocks.of_tile(head, tile)[i] : i;
    if (flags[block] == 0) continue;
    const int last = min(block * kFlagRows + kFlagRows - 1, entry);
    for (int key = block * kFlagRows; key <= last; ++key) {
      const uint16_t* v = a.v.row(position_of(list, key), head / a.group);
#pragma unroll
      for (int c = 0; c < kMaxPerLane; ++c) {
        if (lane + c * 32 >= p.head_dim) continue;
        const float value = to_float<Type>(v[lane + c * 32]);
        if (!isfinite(value)) sum[c] += value;
      }
    }
  }
  const int token = position_of(list, entry);
  uint16_t* out = a.out.row(token - (a.k_len - a.q_len), head);
#pragma unroll
  for (int c = 0; c < kMaxPerLane; ++c) {
    if (!isfinite(sum[c])) {
      out[lane + c * 32] = static_cast<uint16_t>(pack<Type>(sum[c], 0.f) & 0xffffu);
    }
  }
}

/// NaN in f16 and in bf16.
constexpr uint32_t kNanPair = 0x7fff7fffu;

/// Every row of a head, when the call itself was wrong.
__device__ void refuse_rows(const PoisonArgs& p, int head) {
  const AttendArgs& a = p.attend;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int row = static_cast<int>(blockIdx.x * kWarps + threadIdx.x / 32); row < a.q_len;
       row += static_cast<int>(gridDim.x) * kWarps) {
    auto* out = reinterpret_cast<uint32_t*>(a.out.row(row, head));
    for (int i = lane; i < p.head_dim / 2; i += 32) out[i] = kNanPair;
    if (a.lse.data != nullptr && lane == 0) a.lse.at(row, head) = NAN;
  }
}

/// Grid (blocks of a head, Hq).
template <typename Type>
__global__ void __launch_bounds__(32 * kWarps, 4)
    poison_kernel(const __grid_constant__ PoisonArgs p) {
  await_previous();
  const int head = static_cast<int>(blockIdx.y);
  if (*p.broken != 0 || (p.hole != nullptr && *p.hole != 0)) {
    refuse_rows(p, head);
    return;
  }
  if (p.flags[0] == 0) return;
  const AttendArgs& a = p.attend;
  const int n = num_kept(a.sets, a.k_len);
  const int q_first =
      a.q_first == nullptr ? a.k_len - a.q_len : a.q_first[head / a.sets.heads_per_set];
  const int rows = min(a.q_len, n - q_first);
  for (int row = static_cast<int>(blockIdx.x * kWarps + threadIdx.x / 32); row < rows;
       row += static_cast<int>(gridDim.x) * kWarps) {
    poison_row<Type>(p, head, q_first, q_first + row);
  }
}

}  // namespace

tsp_status_t launch_poison(const PoisonArgs& args, int32_t num_sms, cudaStream_t stream) {
  const dim3 grid(
      static_cast<unsigned>((num_sms + args.attend.num_heads - 1) / args.attend.num_heads),
      static_cast<unsigned>(args.attend.num_heads));
  const dim3 block(32 * kWarps);
  return args.bf16 ? launch("poison", poison_kernel<Bf16>, grid, block, 0, stream, args)
                   : launch("poison", poison_kernel<F16>, grid, block, 0, stream, args);
}

}  // namespace tsp::cuda
