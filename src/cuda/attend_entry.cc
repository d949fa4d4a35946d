// SPDX-License-Identifier: MIT
// The table's attend: checks, then one sequence after the other over the same workspace.
#include <algorithm>

#include "cuda/attend_op.h"
#include "cuda/ops.h"

namespace tsp::cuda {
namespace {

int32_t sets_of(const tsp_attend_params_t& p) {
  return p.selected.indices != nullptr ? p.selected.num_sets : static_cast<int32_t>(p.k.heads);
}

}  // namespace

tsp_status_t check_attend(const tsp_context_t& ctx, const tsp_attend_params_t& p) {
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
  TSP_RETURN_IF_ERROR(check_set_memory(ctx, p.selected));
  return check_pointer(ctx, "workspace", p.workspace);
}

size_t attend_workspace(const tsp_context_t& ctx, const tsp_attend_params_t& p) {
  const DeviceGuard guard(ctx);
  const bool sparse = p.selected.indices != nullptr;
  size_t bytes = 0;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const AttendLayout layout =
        plan_attend(state_of(ctx), p, seq_at(p.batch, b), sparse, sets_of(p));
    bytes = std::max(bytes, attend_scratch_bytes(layout, p, sets_of(p)));
  }
  return bytes;
}

tsp_status_t attend(tsp_context_t& ctx, const tsp_attend_params_t& p) {
  const DeviceGuard guard(ctx);
  TSP_RETURN_IF_ERROR(check_attend_memory(ctx, p));
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    AttendTask task{&p, seq, p.selected.indices != nullptr, sets_of(p), {}};
    if (task.sparse) task.sets = make_sets(p.selected, seq, p.q.heads);
    TSP_RETURN_IF_ERROR(run_attend(state_of(ctx), task, p.workspace, stream_of(ctx)));
  }
  return TSP_OK;
}

}  // namespace tsp::cuda
