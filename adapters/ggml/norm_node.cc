// SPDX-License-Identifier: MIT
#include "adapters/ggml/norm_node.h"

#include <algorithm>
#include <cstring>

#include "adapters/ggml/dense_rows.h"

namespace tsp::ggml_adapter {
namespace {

constexpr int64_t kRowsAtOnce = 16;

bool same_shape(const ggml_tensor& a, const ggml_tensor& b) {
  return std::equal(a.ne, a.ne + GGML_MAX_DIMS, b.ne);
}

}  // namespace

bool NormServer::check(const ggml_tensor& node) const {
  if (node.op == GGML_OP_MUL) return is_product_of_waiting(node);
  return node.op == GGML_OP_RMS_NORM && normalise_ != nullptr && rows_of(node) >= min_rows_ &&
         (node.flags & GGML_TENSOR_FLAG_OUTPUT) == 0 && is_dense_f32(node) &&
         is_dense_f32(*node.src[0]);
}

bool NormServer::is_product_of_waiting(const ggml_tensor& node) const {
  if (waiting_ == nullptr || node.op != GGML_OP_MUL || node.src[0] != waiting_) return false;
  const ggml_tensor& factors = *node.src[1];
  return factors.op == GGML_OP_NONE && is_dense_f32(factors) && rows_of(factors) == 1 &&
         factors.ne[0] == node.ne[0] && is_dense_f32(node) && same_shape(node, *waiting_) &&
         node.data == waiting_->data;
}

void NormServer::saw(const ggml_tensor& node, const Threads& threads) {
  if (waiting_ != nullptr && !is_product_of_waiting(node)) compute(nullptr, threads);
}

void NormServer::serve(const ggml_tensor& node, const Threads& threads) {
  if (node.op == GGML_OP_RMS_NORM) {
    waiting_ = &node;
  } else {
    compute(static_cast<const float*>(node.src[1]->data), threads);
  }
}

/// What waits, times `factors` unless they are null.
void NormServer::compute(const float* factors, const Threads& threads) {
  const ggml_tensor& norm = *waiting_;
  waiting_ = nullptr;
  float eps;
  std::memcpy(&eps, norm.op_params, sizeof eps);
  const auto* const in = static_cast<const float*>(norm.src[0]->data);
  auto* const out = static_cast<float*>(norm.data);
  const int64_t rows = rows_of(norm), size = norm.ne[0];
  for_each_item(threads, (rows + kRowsAtOnce - 1) / kRowsAtOnce, [&](int64_t item) {
    const int64_t end = std::min(rows, (item + 1) * kRowsAtOnce);
    for (int64_t row = item * kRowsAtOnce; row < end; ++row) {
      normalise_(in + row * size, factors, size, eps, out + row * size);
    }
  });
}

}  // namespace tsp::ggml_adapter
