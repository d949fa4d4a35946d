// SPDX-License-Identifier: MIT
// decompress: kept rows back to their positions, zeros elsewhere; kRows of a head an item.
#include "cpu/ops.h"
#include "cpu/rows.h"

namespace tsp::cpu {
namespace {

constexpr int32_t kRows = 512;

}  // namespace

tsp_status_t decompress(tsp_context_t& ctx, const tsp_decompress_params_t& p) {
  const int64_t rows = p.in.tokens / p.batch.num_seqs;
  const int64_t heads_per_set = p.out.heads / p.selected.num_sets;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    const int64_t blocks = ceil_div(seq.q_len, kRows);
    for_each_item(ctx, p.out.heads * blocks, [&](int64_t item, int32_t) {
      const auto head = static_cast<int32_t>(item / blocks);
      const auto begin = static_cast<int32_t>(item % blocks) * kRows;
      const int32_t* const list =
          set_indices(p.selected, b, static_cast<int32_t>(head / heads_per_set));
      const int32_t* const list_end = list + p.selected.kept[b];
      const int32_t* next = std::lower_bound(list, list_end, seq.q_pos() + begin);
      for (int32_t q_row = begin; q_row < std::min(begin + kRows, seq.q_len); ++q_row) {
        int64_t from = -1;
        if (next != list_end && *next == seq.q_pos() + q_row) {
          from = (b * rows + (next - list)) * p.in.token_stride + head * p.in.head_stride;
          ++next;
        }
        copy_row(p.in, from, p.out, q_row_offset(p.out, seq, q_row, head));
      }
    });
  }
  return TSP_OK;
}

}  // namespace tsp::cpu
