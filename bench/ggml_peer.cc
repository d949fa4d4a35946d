// SPDX-License-Identifier: MIT
#include "bench/ggml_peer.h"

#include <ggml-cpu.h>
#include <ggml.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "bench/timing.h"
#include "core/dtype.h"

namespace tsp::bench {
namespace {

struct FreeContext {
  void operator()(ggml_context* context) const { ggml_free(context); }
};
using GgmlContext = std::unique_ptr<ggml_context, FreeContext>;

ggml_type ggml_type_of(int32_t dtype) {
  return dtype == TSP_F32 ? GGML_TYPE_F32 : dtype == TSP_F16 ? GGML_TYPE_F16 : GGML_TYPE_BF16;
}

/// A tensor [dim, tokens, heads] over rows first .. first + tokens - 1 of `view`.
ggml_tensor* tensor_over(ggml_context* context, const tsp_tensor_t& view, int64_t first,
                         int64_t tokens) {
  ggml_tensor* tensor =
      ggml_new_tensor_3d(context, ggml_type_of(view.dtype), view.dim, tokens, view.heads);
  const auto bytes = static_cast<size_t>(dtype_bytes(view.dtype));
  tensor->nb[1] = static_cast<size_t>(view.token_stride) * bytes;
  tensor->nb[2] = static_cast<size_t>(view.head_stride) * bytes;
  tensor->nb[3] = tensor->nb[2] * static_cast<size_t>(view.heads);
  tensor->data = static_cast<char*>(view.data) + static_cast<size_t>(first) * tensor->nb[1];
  return tensor;
}

class Peer final : public GgmlPeer {
 public:
  Peer(const Workload& work, int threads, int64_t micro_batch)
      : work_(work), threads_(threads), micro_batch_(micro_batch), out_(work.out_memory.bytes()) {
    const Shape& s = work.shape;
    mask_ = Buffer(static_cast<size_t>(s.tokens * std::min(micro_batch, s.q_tokens)) * 2);
  }

  double run() override {
    const Shape& s = work_.shape;
    double seconds = 0;
    for (int64_t first = 0; first < s.q_tokens; first += micro_batch_) {
      seconds += run_micro_batch(first, std::min(micro_batch_, s.q_tokens - first));
    }
    return seconds;
  }

  const float* out() const override { return static_cast<const float*>(out_.data()); }

 private:
  double run_micro_batch(int64_t first, int64_t count) {
    const Shape& s = work_.shape;
    const int64_t position = s.tokens - s.q_tokens + first;
    const int64_t visible = position + count;
    const int64_t n_kv = std::min((visible + 255) / 256 * 256, s.tokens);  // as its cache pads
    fill_mask(position, count, n_kv);

    const GgmlContext context(ggml_init({1 << 20, nullptr, /*no_alloc=*/true}));
    ggml_tensor* const q = tensor_over(context.get(), work_.q, first, count);
    ggml_tensor* const k = tensor_over(context.get(), work_.k, 0, n_kv);
    ggml_tensor* const v = tensor_over(context.get(), work_.v, 0, n_kv);
    ggml_tensor* const mask = ggml_new_tensor_2d(context.get(), GGML_TYPE_F16, n_kv, count);
    mask->data = mask_.data();
    const float scale = 1.0f / std::sqrt(static_cast<float>(s.dim));
    ggml_tensor* const node = ggml_flash_attn_ext(context.get(), q, k, v, mask, scale, 0.0f, 0.0f);
    node->data = static_cast<float*>(out_.data()) + first * s.heads * s.dim;
    ggml_cgraph* const graph = ggml_new_graph(context.get());
    ggml_build_forward_expand(graph, node);
    ggml_cplan plan = ggml_graph_plan(graph, threads_, nullptr);
    if (plan.work_size > scratch_.bytes()) scratch_ = Buffer(plan.work_size);
    plan.work_data = static_cast<uint8_t*>(scratch_.data());
    return seconds_of([&] { ggml_graph_compute(graph, &plan); });
  }

  void fill_mask(int64_t position, int64_t count, int64_t n_kv) {
    auto* row = static_cast<uint16_t*>(mask_.data());
    constexpr uint16_t kHidden = 0xfc00;  // -infinity
    for (int64_t q = 0; q < count; ++q, row += n_kv) {
      std::fill(row, row + position + q + 1, uint16_t{0});
      std::fill(row + position + q + 1, row + n_kv, kHidden);
    }
  }

  const Workload& work_;
  int threads_;
  int64_t micro_batch_;
  Buffer out_, mask_, scratch_;
};

}  // namespace

std::unique_ptr<GgmlPeer> GgmlPeer::create(const Workload& work, int threads, int64_t micro_batch) {
  if (work.shape.q_dtype != TSP_F32) return nullptr;
  return std::make_unique<Peer>(work, threads, micro_batch);
}

}  // namespace tsp::bench
