// SPDX-License-Identifier: MIT
// What tsp_decompress() means: kept rows back to their positions, zeros elsewhere.
#include "tokensparse/decompress.h"

#include "ref/ref_ops.h"

namespace tsp::ref {

tsp_status_t decompress(tsp_context_t&, const tsp_decompress_params_t& p) {
  const int64_t rows = p.in.tokens / p.batch.num_seqs;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    const int32_t kept = p.selected.kept[b];
    for (int32_t head = 0; head < p.out.heads; ++head) {
      const int32_t* const list = set_indices(
          p.selected, b, static_cast<int32_t>(head / (p.out.heads / p.selected.num_sets)));
      int32_t i = 0;  // first entry of the list that is not behind us
      for (int32_t q_row = 0; q_row < seq.q_len; ++q_row) {
        const int32_t position = seq.q_pos() + q_row;
        while (i < kept && list[i] < position) ++i;
        const bool is_kept = i < kept && list[i] == position;
        copy_row(p.in, is_kept ? (b * rows + i) * p.in.token_stride + head * p.in.head_stride : -1,
                 p.out, q_row_offset(p.out, seq, q_row, head));
      }
    }
  }
  return TSP_OK;
}

}  // namespace tsp::ref
