// SPDX-License-Identifier: MIT
// cuDNN's attention as an optional engine: loaded at run time, plans cached by shape and length
// bucket, lengths read on the device so that nothing synchronises.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "cuda/attend/cudnn_shape.h"
#include "tokensparse/types.h"

namespace tsp::cuda {

struct CudnnTensors {
  const void* q;
  const void* k;
  const void* v;
  void* out;
  float* lse;              // natural log; null = not wanted
  const int32_t* q_lens;   // [1] on the device: the last query row + 1; read where padded
  const int32_t* kv_lens;  // [1] keys; the last query is at the last one; read where padded
  void* workspace;
};

class CudnnAttend {
 public:
  /// Null where cuDNN is not built in or cannot be loaded.
  static std::unique_ptr<CudnnAttend> load();
  CudnnAttend();
  ~CudnnAttend();
  CudnnAttend(const CudnnAttend&) = delete;
  CudnnAttend& operator=(const CudnnAttend&) = delete;

  /// Builds the plan at its first use; false where cuDNN refuses the shape (remembered too).
  bool prepare(const CudnnShape& shape, size_t* workspace_bytes);
  /// `shape` must have been prepared.
  [[nodiscard]] tsp_status_t run(const CudnnShape& shape, const CudnnTensors& memory,
                                 cudaStream_t stream);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tsp::cuda
