// SPDX-License-Identifier: MIT
// The host's own CPU backend, for what the plugin does not compute itself: nodes that tokensparse
// does not serve run in ggml's kernel, and our loops run on ggml's threads. So there is one set of
// threads, whatever ggml was built with, and none of ours beside threads of ggml's that spin.
#pragma once

#include <cstdint>
#include <memory>

#include "adapters/ggml/plugin/host.h"

namespace tsp::ggml_plugin {

class CpuBackend {
 public:
  explicit CpuBackend(const Host& host);
  ~CpuBackend();
  CpuBackend(const CpuBackend&) = delete;
  CpuBackend& operator=(const CpuBackend&) = delete;

  /// False when the host gave no CPU backend or no memory; nothing else may be called then.
  bool ok() const { return loop_ != nullptr; }
  void set_threads(int32_t num_threads);

  /// ggml's own result of one node, into node.data.
  [[nodiscard]] bool compute(ggml_tensor& node);

  /// tsp_parallel_fn; `self` is the CpuBackend.
  static void parallel(void* self, int32_t num_threads, void (*fn)(void* arg, int32_t i),
                       void* arg);

 private:
  struct Loop {
    void (*fn)(void* arg, int32_t i) = nullptr;
    void* arg = nullptr;
    int32_t count = 0;
  };
  static void run_share(ggml_tensor* node, int index, int num_threads, void* loop);

  const Host& host_;
  ggml_backend_t backend_ = nullptr;
  void (*set_n_threads_)(ggml_backend_t backend, int n_threads) = nullptr;
  std::unique_ptr<ggml_context, decltype(&::ggml_free)> ctx_;
  ggml_cgraph* single_ = nullptr;  // a graph for the one node of compute()
  ggml_cgraph* loop_ = nullptr;    // a graph of one node that calls run_share() on each thread
  Loop work_;
};

}  // namespace tsp::ggml_plugin
