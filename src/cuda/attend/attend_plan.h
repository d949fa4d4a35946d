// SPDX-License-Identifier: MIT
// How attend serves a sequence: by which engine and in which pieces. Plain C++, so that a machine
// without CUDA tests it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tsp::cuda {

enum class Engine {
  kOwn,          // our kernel on mma.sync: gathers and scatters by itself
  kCudnnDirect,  // cuDNN on the caller's tensors, but for a copy of V
  kCudnnGroups,  // cuDNN on compact copies of a group of heads at a time
  kSm90,         // our kernel on warpgroup products, on compact copies of K and V
};

/// What a context has. One that was asked for cuDNN uses it.
struct Engines {
  bool cudnn = false;
  bool sm90 = false;
};

/// What decides. Sizes of one sequence.
struct AttendSizes {
  int32_t q_len = 0;  // Tq
  int32_t k_len = 0;  // Tk
  int32_t q_heads = 1;
  int32_t kv_heads = 1;
  int32_t head_dim = 128;
  int32_t num_sets = 0;    // S; 0 = dense
  bool paged = false;      // K and V lie in blocks
  bool by_blocks = false;  // each query tile reads a list of key blocks: not through cuDNN
};

struct AttendPlan {
  Engine engine = Engine::kOwn;
  // A unit is one head of the compact K and V (compress.h).
  int32_t units = 0;
  int32_t per_kv = 1;       // units of a KV head
  int32_t q_heads = 1;      // of a unit
  int64_t flag_stride = 0;  // flags of a unit
  // Copies, of all engines but kOwn.
  bool gather = false;      // of K too, by list or block table; else V alone
  int32_t group_units = 0;  // units at once
  int32_t capacity = 0;     // rows of a head
  // Copies of Q and O, for cuDNN.
  int32_t q_capacity = 0;
  bool q_in_out = false;  // compact Q waits in `out`, whose rows are written last
  int32_t lanes = 1;      // groups that may be under way next to each other
  // What cuDNN answered, see prepare_cudnn().
  bool padded = true;  // lengths are read on the device
  size_t cudnn_bytes = 0;
};

AttendPlan plan_attend(const AttendSizes& sizes, const Engines& engines);

constexpr int32_t kMaxLanes = 2;
/// Two groups of heads are under way, each on a stream: the copies of one and the last blocks of
/// one's attention run beside the attention of the other, 5 % faster at 32 Ki tokens. Both together
/// hold as many units as keep the copies below this share of the bytes of Q; at 128 Ki keys small
/// groups keep their K and V in L2 and were as fast as twice as large ones (H200, 2026-11-25).
constexpr double kGroupShare = 1.5;
constexpr double kGroupShareLong = 0.57;
constexpr int32_t kLongKeys = 65536;  // the last length with the first
/// Shorter sequences go through our own kernel: a launch costs more than it gains.
constexpr int32_t kCudnnMinKeys = 1024;

/// Plans take some 0.4 s to build (H200, 2026-11), so lengths of our own buffers go up to the next
/// of eight steps between powers of two: at most 1/8 longer.
constexpr int32_t length_bucket(int32_t len) {
  int32_t step = 128;
  while (step * 16 <= len) step *= 2;
  return static_cast<int32_t>((int64_t{len} + step - 1) / step * step);
}

/// Units gathered at once: as many as the budget holds, at least one, balanced over the groups.
int32_t units_per_group(int32_t units, int64_t unit_bytes, int64_t budget_bytes);

}  // namespace tsp::cuda
