// SPDX-License-Identifier: MIT
// A second stream beside the caller's: work that is independent runs next to each other, so that
// one kernel's last blocks and another's copies share the chip. Events order it; the host waits for
// nothing, and a capture of the caller's stream takes the branch along.
#pragma once

#include <cuda_runtime_api.h>

#include <initializer_list>

#include "cuda/launch.h"

namespace tsp::cuda {

class SideStream {
 public:
  SideStream() = default;
  ~SideStream() {
    if (join_ != nullptr) (void)cudaEventDestroy(join_);
    if (fork_ != nullptr) (void)cudaEventDestroy(fork_);
    if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
  }
  SideStream(const SideStream&) = delete;
  SideStream& operator=(const SideStream&) = delete;

  /// On the current device.
  [[nodiscard]] tsp_status_t open() {
    TSP_RETURN_IF_ERROR(
        check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "side stream"));
    for (cudaEvent_t* event : {&fork_, &join_}) {
      TSP_RETURN_IF_ERROR(
          check(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "side stream's event"));
    }
    return TSP_OK;
  }

  cudaStream_t stream() const { return stream_; }
  /// What is enqueued here from now on waits for what `main` holds.
  [[nodiscard]] tsp_status_t fork(cudaStream_t main) { return follow(stream_, fork_, main); }
  /// And what is enqueued on `main` from now on, for what was enqueued here.
  [[nodiscard]] tsp_status_t join(cudaStream_t main) { return follow(main, join_, stream_); }

 private:
  static tsp_status_t follow(cudaStream_t later, cudaEvent_t event, cudaStream_t earlier) {
    TSP_RETURN_IF_ERROR(check(cudaEventRecord(event, earlier), "side stream"));
    return check(cudaStreamWaitEvent(later, event, 0), "side stream");
  }

  cudaStream_t stream_ = nullptr;
  cudaEvent_t fork_ = nullptr;
  cudaEvent_t join_ = nullptr;
};

}  // namespace tsp::cuda
