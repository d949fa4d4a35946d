// SPDX-License-Identifier: MIT
// Every kernel launch and every runtime call that can fail goes through here and becomes a status.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "core/error.h"

namespace tsp::cuda {

[[nodiscard]] inline tsp_status_t check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return TSP_OK;
  // Clears a sticky-free error so that the next call does not report it again.
  (void)cudaGetLastError();
  return fail(TSP_INTERNAL, "%s failed: %s", what, cudaGetErrorString(error));
}

/// From Hopper on a kernel may start while the one before it drains. A device is asked once.
[[nodiscard]] inline bool starts_early() {
  constexpr int kDevices = 64;
  enum : int8_t { kUnknown, kNo, kYes };
  static std::atomic<int8_t> known[kDevices];
  int device = 0, major = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kDevices) return false;
  int8_t answer = known[device].load(std::memory_order_relaxed);
  if (answer == kUnknown &&
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess) {
    answer = major >= 9 ? kYes : kNo;
    known[device].store(answer, std::memory_order_relaxed);
  }
  return answer == kYes;
}

/// A kernel's own and its launch's shared memory together may be 48 KB before its limit must be
/// raised; kernels whose launch asks for some have less than 8 KB of their own.
constexpr size_t kUnraisedSharedBytes = (48 - 8) * 1024;

/// How a kernel's blocks start.
enum class Start {
  kEarly,     // where the chip can, while the kernel before drains
  kTogether,  // all or none, so that they may wait for each other
};

/// Launches `kernel(args...)`; large `shared_bytes` raise the kernel's limit first. Every
/// kernel opens with await_previous() or says why not, so an early start changes no result.
template <Start kStart = Start::kEarly, typename... Params>
[[nodiscard]] tsp_status_t launch(const char* name, void (*kernel)(Params...), dim3 grid,
                                  dim3 block, size_t shared_bytes, cudaStream_t stream,
                                  Params... params) {
  const void* function = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > kUnraisedSharedBytes) {
    TSP_RETURN_IF_ERROR(
        check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared_bytes)),
              name));
  }
  cudaLaunchAttribute attributes[2]{};
  unsigned count = 0;
  if (starts_early()) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (kStart == Start::kTogether) {
    attributes[count].id = cudaLaunchAttributeCooperative;
    attributes[count++].val.cooperative = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  void* args[] = {static_cast<void*>(&params)...};
  return check(cudaLaunchKernelExC(&config, function, args), name);
}

#ifdef __CUDACC__
/// griddepcontrol.launch_dependents: the next kernel of the stream may start once every block of
/// this one got here.
__device__ __forceinline__ void allow_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}
/// griddepcontrol.wait: all that came before this kernel has finished, its writes are visible.
__device__ __forceinline__ void wait_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}
/// The first statement of every kernel that does nothing before.
__device__ __forceinline__ void await_previous() {
  allow_next();
  wait_previous();
}
#endif

}  // namespace tsp::cuda
