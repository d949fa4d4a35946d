// SPDX-License-Identifier: MIT
#include "cli/device_memory.h"

#include <new>

#ifdef TSP_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

#include "cli/verbs.h"

namespace tsp::cli {
namespace {

constexpr std::align_val_t kAlign{64};

#ifdef TSP_WITH_CUDA
void require(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw Failure(std::string("GPU: ") + what + ": " + cudaGetErrorString(error));
  }
}
#endif

}  // namespace

DeviceMemory::DeviceMemory(bool on_gpu, void* host, size_t bytes)
    : on_gpu_(on_gpu), host_(host), bytes_(bytes), data_(host) {
#ifdef TSP_WITH_CUDA
  if (on_gpu_) {
    require(cudaMalloc(&data_, bytes == 0 ? 1 : bytes), "allocation");
    return;
  }
#endif
  if (host_ == nullptr) data_ = ::operator new(bytes == 0 ? 1 : bytes, kAlign);
}

DeviceMemory::~DeviceMemory() {
#ifdef TSP_WITH_CUDA
  if (on_gpu_) {
    (void)cudaFree(data_);
    return;
  }
#endif
  if (host_ == nullptr) ::operator delete(data_, kAlign);
}

void DeviceMemory::upload() {
#ifdef TSP_WITH_CUDA
  if (on_gpu_) require(cudaMemcpy(data_, host_, bytes_, cudaMemcpyHostToDevice), "upload");
#endif
}

void DeviceMemory::download() {
#ifdef TSP_WITH_CUDA
  if (on_gpu_) require(cudaMemcpy(host_, data_, bytes_, cudaMemcpyDeviceToHost), "download");
#endif
}

void synchronise(bool on_gpu) {
#ifdef TSP_WITH_CUDA
  if (on_gpu) require(cudaDeviceSynchronize(), "prefill");
#else
  (void)on_gpu;
#endif
}

}  // namespace tsp::cli
