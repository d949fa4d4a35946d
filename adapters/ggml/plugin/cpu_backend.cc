// SPDX-License-Identifier: MIT
#include "adapters/ggml/plugin/cpu_backend.h"

namespace tsp::ggml_plugin {

CpuBackend::CpuBackend(const Host& host) : host_(host), ctx_(nullptr, host.ggml_free) {
  ggml_backend_dev_t device = host_.ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  if (device == nullptr) return;
  backend_ = host_.ggml_backend_dev_init(device, nullptr);
  if (backend_ == nullptr) return;
  set_n_threads_ =
      reinterpret_cast<decltype(set_n_threads_)>(host_.ggml_backend_reg_get_proc_address(
          host_.ggml_backend_dev_backend_reg(device), "ggml_backend_set_n_threads"));
  constexpr size_t kNodeBytes = 4096;
  ctx_.reset(host_.ggml_init({.mem_size = 2 * host_.ggml_graph_overhead() + kNodeBytes,
                              .mem_buffer = nullptr,
                              .no_alloc = false}));
  if (ctx_ == nullptr) return;
  ggml_tensor* node = host_.ggml_custom_4d(ctx_.get(), GGML_TYPE_F32, 1, 1, 1, 1, nullptr, 0,
                                           run_share, GGML_N_TASKS_MAX, &work_);
  single_ = host_.ggml_new_graph(ctx_.get());
  loop_ = host_.ggml_new_graph(ctx_.get());
  host_.ggml_build_forward_expand(loop_, node);
}

CpuBackend::~CpuBackend() {
  if (backend_ != nullptr) host_.ggml_backend_free(backend_);
}

void CpuBackend::set_threads(int32_t num_threads) {
  if (set_n_threads_ != nullptr) set_n_threads_(backend_, num_threads);
}

bool CpuBackend::compute(ggml_tensor& node) {
  host_.ggml_graph_clear(single_);
  host_.ggml_graph_add_node(single_, &node);
  return host_.ggml_backend_graph_compute(backend_, single_) == GGML_STATUS_SUCCESS;
}

void CpuBackend::parallel(void* self, int32_t num_threads, void (*fn)(void* arg, int32_t i),
                          void* arg) {
  auto& backend = *static_cast<CpuBackend*>(self);
  backend.work_ = {fn, arg, num_threads};
  if (num_threads > 1 && backend.host_.ggml_backend_graph_compute(
                             backend.backend_, backend.loop_) == GGML_STATUS_SUCCESS) {
    return;
  }
  for (int32_t i = 0; i < num_threads; ++i) fn(arg, i);
}

void CpuBackend::run_share(ggml_tensor*, int index, int num_threads, void* loop) {
  const Loop& work = *static_cast<const Loop*>(loop);
  for (int32_t i = index; i < work.count; i += num_threads) work.fn(work.arg, i);
}

}  // namespace tsp::ggml_plugin
