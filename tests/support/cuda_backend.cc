// SPDX-License-Identifier: MIT
// The CUDA backend for the op tests, with and without cuDNN, and its memory.
#include <cuda_runtime_api.h>

#include <stdexcept>

#include "tests/support/backends.h"

namespace tsp::test {
namespace {

void require(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
  }
}

struct CudaMemory : DeviceMemory {
  void* allocate(size_t bytes) override {
    void* memory = nullptr;
    require(cudaMalloc(&memory, bytes == 0 ? 1 : bytes), "cudaMalloc");
    return memory;
  }
  void release(void* memory) override { (void)cudaFree(memory); }
  void upload(void* device, const void* host, size_t bytes) override {
    require(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice), "upload");
  }
  void download(void* host, const void* device, size_t bytes) override {
    require(cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost), "download");
  }
  void synchronise() override { require(cudaDeviceSynchronize(), "synchronise"); }
};

}  // namespace

std::vector<Backend> cuda_backends() {
  tokensparse::ContextOptions options;
  options.backend = TSP_BACKEND_CUDA;
  tokensparse::Context ctx;
  if (!tokensparse::Context::create(options, &ctx).ok()) return {};
  const std::string best = tsp_context_isa(ctx.get());
  const std::string own = best.substr(0, best.find('+'));
  const auto memory = std::make_shared<CudaMemory>();
  std::vector<Backend> backends = {{"cuda", TSP_BACKEND_CUDA, own, memory}};
  const auto add = [&](const char* name, const std::string& isa) {
    options.isa = isa.c_str();
    if (isa == own || !tokensparse::Context::create(options, &ctx).ok()) return;
    backends.push_back({name, TSP_BACKEND_CUDA, isa, memory});
  };
  add("cuda_sm80", "sm_80");
  add("cuda_cudnn", own + "+cudnn");
  return backends;
}

}  // namespace tsp::test
