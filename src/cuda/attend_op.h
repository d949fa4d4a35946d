// SPDX-License-Identifier: MIT
// attend on one sequence: which engine, in which pieces, and over which workspace. attend and
// prefill share it.
#pragma once

#include "cuda/attend/attend.h"
#include "cuda/compress.h"
#include "cuda/cudnn_attend.h"
#include "cuda/scratch.h"
#include "cuda/state.h"

namespace tsp::cuda {

/// One sequence, ready for kernels.
struct AttendTask {
  const tsp_attend_params_t* params;
  Seq seq;
  bool sparse;       // has index sets
  int32_t num_sets;  // S; Hkv when dense
  Sets sets;         // empty when dense
};

/// The pieces of the attend workspace and the cuts of the work. With cuDNN, units are gathered in
/// groups so that the copies of Q, K, V and O stay small.
struct AttendLayout {
  bool cudnn = false;
  bool gather = false;    // through compact copies; else cuDNN reads the caller's tensors
  bool padded = true;     // cuDNN reads lengths on the device
  bool q_in_out = false;  // compact Q waits in `out`, whose rows are written last
  int32_t units = 0;
  int32_t per_kv = 1;
  int32_t q_heads = 1;      // of a unit
  int32_t group_units = 0;  // units at once
  int32_t lanes = 1;        // groups that may be under way next to each other
  int32_t capacity = 0;     // rows of a compact head, keys
  int32_t q_capacity = 0;   // queries
  int64_t flag_stride = 0;
  size_t cudnn_bytes = 0;  // cuDNN's own workspace
};

constexpr int32_t kMaxLanes = 2;

/// Decides, and prepares the cuDNN plans it decided for.
AttendLayout plan_attend(State& state, const tsp_attend_params_t& params, const Seq& seq,
                         bool sparse, int32_t num_sets);
size_t attend_scratch_bytes(const AttendLayout& layout, const tsp_attend_params_t& params,
                            int32_t num_sets);
tsp_status_t run_attend(State& state, const AttendTask& task, void* scratch, cudaStream_t stream);

/// Two groups of heads are under way, each on a stream: the copies of one and the last blocks of
/// one's attention run beside the attention of the other, 5 % faster at 32 Ki tokens. Both together
/// hold as many units as keep the copies below this share of the bytes of Q; at 128 Ki keys small
/// groups keep their K and V in L2 and were as fast as twice as large ones (H200, 2026-11-25).
constexpr double kGroupShare = 1.5;
constexpr double kGroupShareLong = 0.57;
constexpr int32_t kLongKeys = 65536;  // the last length with the first
/// Shorter sequences go through our own kernel: a launch costs more than it gains.
constexpr int32_t kCudnnMinKeys = 1024;
/// Rows of V zeroed behind the last one: no tile of cuDNN is longer.
constexpr int32_t kPadRows = 256;

}  // namespace tsp::cuda
