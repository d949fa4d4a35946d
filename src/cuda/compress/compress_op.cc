// SPDX-License-Identifier: MIT
#include <algorithm>

#include "cuda/compress/compress.h"
#include "cuda/ops.h"

namespace tsp::cuda {

tsp_status_t compress(tsp_context_t& ctx, const tsp_compress_params_t& p) {
  const DeviceGuard guard(ctx);
  TSP_RETURN_IF_ERROR(check_stream(ctx));
  const bool with_q = p.q.data != nullptr;
  const struct {
    const char* name;
    const tsp_tensor_t& view;
    bool used;
  } views[] = {{"k", p.k, true},         {"v", p.v, true},   {"k_out", p.k_out, true},
               {"v_out", p.v_out, true}, {"q", p.q, with_q}, {"q_out", p.q_out, with_q}};
  for (const auto& view : views) {
    if (view.used) TSP_RETURN_IF_ERROR(check_rows(ctx, view.name, view.view, true));
  }
  TSP_RETURN_IF_ERROR(check_set_memory(ctx, "selected", p.selected));
  const auto kv_heads = static_cast<int32_t>(p.k.heads);
  const int32_t units = std::max(p.selected.num_sets, kv_heads);
  const int64_t rows = p.k_out.tokens / p.batch.num_seqs;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    CompressArgs a{};
    if (with_q) {
      a.q = q_rows(p.q, seq);
      a.q_out = make_rows(p.q_out, seq, static_cast<int32_t>(b * rows));
    }
    a.k = k_rows(p.k, seq);
    a.v = k_rows(p.v, seq);
    a.k_out = make_rows(p.k_out, seq, static_cast<int32_t>(b * rows));
    a.v_out = make_rows(p.v_out, seq, static_cast<int32_t>(b * rows));
    a.sets = make_sets(p.selected, seq, p.q.heads);
    a.units = {0, units, units / kv_heads, static_cast<int32_t>(p.q.heads / units)};
    a.q_pos = seq.q_pos();
    a.k_len = seq.k_len;
    a.capacity = static_cast<int32_t>(std::min<int64_t>(rows, seq.k_len));
    TSP_RETURN_IF_ERROR(launch_compress(a, static_cast<int32_t>(p.k.dim), stream_of(ctx)));
  }
  return TSP_OK;
}

tsp_status_t decompress(tsp_context_t& ctx, const tsp_decompress_params_t& p) {
  const DeviceGuard guard(ctx);
  TSP_RETURN_IF_ERROR(check_stream(ctx));
  TSP_RETURN_IF_ERROR(check_rows(ctx, "in", p.in, true));
  TSP_RETURN_IF_ERROR(check_rows(ctx, "out", p.out, true));
  TSP_RETURN_IF_ERROR(check_set_memory(ctx, "selected", p.selected));
  const int64_t rows = p.in.tokens / p.batch.num_seqs;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    DecompressArgs a{};
    a.in = make_rows(p.in, seq, static_cast<int32_t>(b * rows));
    a.out = q_rows(p.out, seq);
    a.sets = make_sets(p.selected, seq, p.out.heads);
    a.num_heads = static_cast<int32_t>(p.out.heads);
    a.q_len = seq.q_len;
    a.k_len = seq.k_len;
    a.clear_dropped = true;
    TSP_RETURN_IF_ERROR(launch_decompress(a, static_cast<int32_t>(p.out.dim), stream_of(ctx)));
  }
  return TSP_OK;
}

}  // namespace tsp::cuda
