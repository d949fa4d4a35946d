// SPDX-License-Identifier: MIT
// One sequence of attend, ready for engines: what it reads and writes, and its workspace.
#pragma once

#include "cuda/attend/attend_args.h"
#include "cuda/attend/attend_plan.h"
#include "cuda/attend/leftout_args.h"
#include "cuda/attend/vetting.h"
#include "cuda/compress/compress.h"
#include "cuda/scratch.h"
#include "tokensparse/attend.h"

namespace tsp::cuda {

struct AttendTask {
  const tsp_attend_params_t* params;
  Seq seq;
  bool sparse;                     // has index sets
  int32_t num_sets;                // S; Hkv when dense
  Sets sets;                       // when dense: every token
  bool own_lists = false;          // of blocks: the library's, which keep their rules
  const uint32_t* hole = nullptr;  // see PageTables

  int32_t head_dim() const { return static_cast<int32_t>(params->q.dim); }
  int32_t q_heads() const { return static_cast<int32_t>(params->q.heads); }
  int32_t kv_heads() const { return static_cast<int32_t>(params->k.heads); }
  bool vets_lists() const { return params->blocks.blocks != nullptr && !own_lists; }
  /// Left-out rows attend to first and last keys.
  bool attends_left_out() const { return sparse && params->dropped == TSP_DROPPED_LOCAL; }
  AttendSizes sizes() const;
};
AttendTask dense_task(const tsp_attend_params_t& params, const Seq& seq);
AttendTask sparse_task(const tsp_attend_params_t& params, const Seq& seq, const Sets& sets,
                       int32_t num_sets);

/// Compact copies of a group of units.
struct Copies {
  uint16_t* k;  // [group units, capacity, D]
  uint16_t* v;
  uint16_t* q;  // [group units * q_heads, q_capacity, D]; null: in `out`
  uint16_t* out;
  float* lse;  // [group units * q_heads, q_capacity]
  void* cudnn;
};

/// Where the pieces of the workspace lie.
struct AttendMemory {
  uint32_t* flags;  // a word for any, then [units, flag_stride]
  int64_t num_flags;
  int32_t* tickets;   // [2] behind the flags, zero as they are
  uint32_t* broken;   // [1] behind them: not 0 where a list of blocks breaks a rule
  int32_t* counts;    // [block sets, query blocks] of lists that were looked at; null: the caller's
  int32_t* q_first;   // [S]
  int32_t* q_lens;    // [1]
  int32_t* kv_lens;   // [1]
  int32_t* left_out;  // [S, Tq] positions; null: left-out rows become zeros
  Copies lanes[kMaxLanes];
};
AttendMemory place_attend(const AttendTask& task, const AttendPlan& plan, Scratch& scratch);

/// Arguments of the kernels that engines share.
AttendArgs attend_args(const AttendTask& task, const AttendMemory& memory);
CompressArgs compress_args(const AttendTask& task, const AttendPlan& plan,
                           const AttendMemory& memory, const Units& units);
DecompressArgs decompress_args(const AttendTask& task);
VetBlocksArgs vet_blocks_args(const AttendTask& task, const AttendMemory& memory);
LeftOutArgs left_out_args(const AttendTask& task, const AttendMemory& memory);
Rows compact_rows(uint16_t* data, int32_t capacity, int32_t head_dim);
inline Units all_units(const AttendPlan& plan) {
  return {0, plan.units, plan.per_kv, plan.q_heads};
}

}  // namespace tsp::cuda
