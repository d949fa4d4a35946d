// SPDX-License-Identifier: MIT
// What tsp_compress() means: rows copied by index.
#include "tokensparse/compress.h"

#include "ref/ref_ops.h"

namespace tsp::ref {

tsp_status_t compress(tsp_context_t&, const tsp_compress_params_t& p) {
  const int64_t rows = p.k_out.tokens / p.batch.num_seqs;
  const int32_t num_sets = p.selected.num_sets;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    const int32_t kept = p.selected.kept[b];
    const auto out_offset = [&](const tsp_tensor_t& out, int32_t i, int64_t head) {
      return (b * rows + i) * out.token_stride + head * out.head_stride;
    };
    for (int64_t head = 0; head < p.k_out.heads; ++head) {
      const auto set = static_cast<int32_t>(head / (p.k_out.heads / num_sets));
      const auto kv_head = static_cast<int32_t>(head / (p.k_out.heads / p.k.heads));
      const int32_t* const list = set_indices(p.selected, b, set);
      for (int32_t i = 0; i < kept; ++i) {
        copy_row(p.k, k_row_offset(p.k, seq, list[i], kv_head), p.k_out,
                 out_offset(p.k_out, i, head));
        copy_row(p.v, k_row_offset(p.v, seq, list[i], kv_head), p.v_out,
                 out_offset(p.v_out, i, head));
      }
    }
    for (int32_t head = 0; p.q.data != nullptr && head < p.q.heads; ++head) {
      const int32_t* const list =
          set_indices(p.selected, b, static_cast<int32_t>(head / (p.q.heads / num_sets)));
      for (int32_t i = 0; i < kept; ++i) {
        const int32_t q_row = list[i] - seq.q_pos();
        copy_row(p.q, q_row < 0 ? -1 : q_row_offset(p.q, seq, q_row, head), p.q_out,
                 out_offset(p.q_out, i, head));
      }
    }
  }
  return TSP_OK;
}

}  // namespace tsp::ref
