// SPDX-License-Identifier: MIT
#include "ref/ref_ops.h"

namespace tsp {
namespace ref {

double logit(const tsp_tensor_t& q, const tsp_tensor_t& k, const Seq& seq, int32_t q_row,
             int32_t token, int32_t head, float scale) {
  const auto kv_head = static_cast<int32_t>(head / (q.heads / k.heads));
  const int64_t q_at = q_row_offset(q, seq, q_row, head);
  const int64_t k_at = k_row_offset(k, seq, token, kv_head);
  double sum = 0;
  for (int64_t d = 0; d < q.dim; ++d) {
    sum += static_cast<double>(load_as_f32(q.data, q.dtype, q_at + d * q.dim_stride)) *
           static_cast<double>(load_as_f32(k.data, k.dtype, k_at + d * k.dim_stride));
  }
  return static_cast<double>(scale) * sum;
}

void copy_row(const tsp_tensor_t& in, int64_t from, const tsp_tensor_t& out, int64_t to) {
  for (int64_t d = 0; d < in.dim; ++d) {
    const int64_t in_at = from + d * in.dim_stride;
    const int64_t out_at = to + d * out.dim_stride;
    if (in.dtype == TSP_F32) {
      static_cast<float*>(out.data)[out_at] =
          from < 0 ? 0.0f : static_cast<const float*>(in.data)[in_at];
    } else {
      static_cast<uint16_t*>(out.data)[out_at] =
          from < 0 ? uint16_t{0} : static_cast<const uint16_t*>(in.data)[in_at];
    }
  }
}

}  // namespace ref

const OpTable* ref_ops() {
  static constexpr OpTable table = {
      .backend = "ref",
      .score = ref::score,
      .select = ref::select,
      .compress = ref::compress,
      .attend = ref::attend,
      .decompress = ref::decompress,
      .estimate = ref::estimate,
      .prefill = nullptr,  // composed by dispatch
      .score_workspace = ref::score_workspace,
      .select_workspace = ref::select_workspace,
      .attend_workspace = ref::attend_workspace,
      .estimate_workspace = ref::estimate_workspace,
      .prefill_workspace = nullptr,
      .check_score = nullptr,
      .check_attend = nullptr,
      .check_estimate = nullptr,
      .check_prefill = nullptr,
      .prefill_pays = nullptr,
      .pattern_pays = nullptr,
      .may_pay = nullptr,
  };
  return &table;
}

}  // namespace tsp
