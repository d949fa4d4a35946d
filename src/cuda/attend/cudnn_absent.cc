// SPDX-License-Identifier: MIT
// Builds without the headers of cudnn-frontend: there is no cuDNN, our own kernel serves all.
#include "core/error.h"
#include "cuda/attend/cudnn_attend.h"

namespace tsp::cuda {

struct CudnnAttend::Impl {};
CudnnAttend::CudnnAttend() = default;
CudnnAttend::~CudnnAttend() = default;
std::unique_ptr<CudnnAttend> CudnnAttend::load() { return nullptr; }
bool CudnnAttend::prepare(const CudnnShape&, size_t*) { return false; }
tsp_status_t CudnnAttend::run(const CudnnShape&, const CudnnTensors&, cudaStream_t) {
  return fail(TSP_UNAVAILABLE, "cuDNN is not part of this build");
}

}  // namespace tsp::cuda
