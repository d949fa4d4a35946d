// SPDX-License-Identifier: MIT
// The table's attend: checks, then one sequence after the other over the same workspace.
#include <algorithm>

#include "cuda/attend/attend_run.h"
#include "cuda/ops.h"

namespace tsp::cuda {
namespace {

AttendTask task_of(const tsp_attend_params_t& p, const Seq& seq) {
  if (p.selected.indices == nullptr) return dense_task(p, seq);
  return sparse_task(p, seq, make_sets(p.selected, seq, p.q.heads), p.selected.num_sets);
}

/// Blocks as tiles of the kernels are cut.
tsp_status_t check_key_blocks(const tsp_block_sets_t& blocks) {
  if (blocks.blocks == nullptr) return TSP_OK;
  if (blocks.block != kKeyBlock) {
    return fail(TSP_UNSUPPORTED, "blocks.block: backend cuda takes %d, got %d", kKeyBlock,
                blocks.block);
  }
  if (blocks.columns != nullptr) {
    return fail(TSP_UNSUPPORTED, "blocks.columns: must be null on backend cuda");
  }
  return TSP_OK;
}

}  // namespace

tsp_status_t check_attend(const tsp_context_t& ctx, const tsp_attend_params_t& p) {
  TSP_RETURN_IF_ERROR(check_key_blocks(p.blocks));
  const struct {
    const char* name;
    const tsp_tensor_t& view;
  } views[] = {{"q", p.q}, {"k", p.k}, {"v", p.v}, {"out", p.out}};
  for (const auto& view : views) {
    TSP_RETURN_IF_ERROR(check_rows(ctx, view.name, view.view, false));
    TSP_RETURN_IF_ERROR(check_same_dtype(view.name, view.view, p.q));
  }
  return TSP_OK;
}

tsp_status_t check_attend_memory(const tsp_context_t& ctx, const tsp_attend_params_t& p) {
  TSP_RETURN_IF_ERROR(check_stream(ctx));
  TSP_RETURN_IF_ERROR(check_rows(ctx, "q", p.q, true));
  TSP_RETURN_IF_ERROR(check_rows(ctx, "k", p.k, true));
  TSP_RETURN_IF_ERROR(check_rows(ctx, "v", p.v, true));
  TSP_RETURN_IF_ERROR(check_rows(ctx, "out", p.out, true));
  if (p.lse.data != nullptr) TSP_RETURN_IF_ERROR(check_pointer(ctx, "lse", p.lse.data));
  TSP_RETURN_IF_ERROR(check_set_memory(ctx, "selected", p.selected));
  if (p.blocks.blocks != nullptr) {
    TSP_RETURN_IF_ERROR(check_pointer(ctx, "blocks.blocks", p.blocks.blocks));
    TSP_RETURN_IF_ERROR(check_pointer(ctx, "blocks.counts", p.blocks.counts));
  }
  return check_pointer(ctx, "workspace", p.workspace);
}

size_t attend_workspace(const tsp_context_t& ctx, const tsp_attend_params_t& p) {
  const DeviceGuard guard(ctx);
  Scratch tables(nullptr);
  place_tables(p.k, p.v, p.batch, tables);
  size_t bytes = 0;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    bytes = std::max(bytes, attend_scratch_bytes(state_of(ctx), task_of(p, seq_at(p.batch, b))));
  }
  return tables.used() + bytes;
}

tsp_status_t attend(tsp_context_t& ctx, const tsp_attend_params_t& p) {
  const DeviceGuard guard(ctx);
  TSP_RETURN_IF_ERROR(check_attend_memory(ctx, p));
  Scratch scratch(p.workspace);
  const PageTables tables = place_tables(p.k, p.v, p.batch, scratch);
  void* const rest = static_cast<unsigned char*>(p.workspace) + scratch.used();
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    tsp_attend_params_t vetted = p;
    TSP_RETURN_IF_ERROR(vet_tables(tables, seq, vetted.k, vetted.v, stream_of(ctx)));
    AttendTask task = task_of(vetted, seq);
    task.hole = tables.hole;
    TSP_RETURN_IF_ERROR(run_attend(state_of(ctx), task, rest, stream_of(ctx)));
  }
  return TSP_OK;
}

}  // namespace tsp::cuda
