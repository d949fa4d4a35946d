// SPDX-License-Identifier: MIT
// compress: rows copied by index, kRows of one output head an item.
#include "cpu/ops.h"
#include "cpu/rows.h"

namespace tsp::cpu {
namespace {

constexpr int32_t kRows = 512;

/// Rows [begin, end) of an output head from the rows of `in` that its list names.
struct Copy {
  const tsp_tensor_t& in;
  const tsp_tensor_t& out;
  int64_t out_begin;  // first output row of the sequence

  void run(const Seq& seq, const int32_t* list, int32_t begin, int32_t end, bool queries,
           int32_t in_head, int32_t out_head) const {
    for (int32_t i = begin; i < end; ++i) {
      const int32_t row = queries ? list[i] - seq.q_pos() : list[i];
      const int64_t from = row < 0   ? -1
                           : queries ? q_row_offset(in, seq, row, in_head)
                                     : k_row_offset(in, seq, row, in_head);
      copy_row(in, from, out, (out_begin + i) * out.token_stride + out_head * out.head_stride);
    }
  }
};

}  // namespace

tsp_status_t compress(tsp_context_t& ctx, const tsp_compress_params_t& p) {
  const int64_t rows = p.k_out.tokens / p.batch.num_seqs;
  const int64_t q_heads = p.q.data == nullptr ? 0 : p.q.heads;
  const int64_t heads = p.k_out.heads + q_heads;
  const int32_t num_sets = p.selected.num_sets;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    const int32_t kept = p.selected.kept[b];
    const int64_t blocks = ceil_div(kept, kRows);
    for_each_item(ctx, heads * blocks, [&](int64_t item, int32_t) {
      const auto begin = static_cast<int32_t>(item % blocks) * kRows;
      const int32_t end = std::min(begin + kRows, kept);
      auto head = static_cast<int32_t>(item / blocks);
      if (head < p.k_out.heads) {
        const auto set = static_cast<int32_t>(head / (p.k_out.heads / num_sets));
        const auto kv_head = static_cast<int32_t>(head / (p.k_out.heads / p.k.heads));
        const int32_t* const list = set_indices(p.selected, b, set);
        Copy{p.k, p.k_out, b * rows}.run(seq, list, begin, end, false, kv_head, head);
        Copy{p.v, p.v_out, b * rows}.run(seq, list, begin, end, false, kv_head, head);
      } else {
        head -= static_cast<int32_t>(p.k_out.heads);
        const int32_t* const list =
            set_indices(p.selected, b, static_cast<int32_t>(head / (p.q.heads / num_sets)));
        Copy{p.q, p.q_out, b * rows}.run(seq, list, begin, end, true, head, head);
      }
    });
  }
  return TSP_OK;
}

}  // namespace tsp::cpu
