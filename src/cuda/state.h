// SPDX-License-Identifier: MIT
// What a CUDA context keeps between calls, and the entry of every op: device, stream, arguments.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "core/context.h"
#include "core/error.h"
#include "cuda/attend/cudnn_attend.h"
#include "cuda/side_stream.h"
#include "tokensparse/tokensparse.h"

namespace tsp::cuda {

struct State {
  int32_t num_sms = 0;
  bool warpgroups = false;             // wgmma: compute capability 9.0
  std::unique_ptr<CudnnAttend> cudnn;  // null: not built in, not installed, or switched off
  SideStream side;
};

inline State& state_of(const tsp_context_t& ctx) {
  return *static_cast<State*>(ctx.backend_state.get());
}
inline cudaStream_t stream_of(const tsp_context_t& ctx) {
  return static_cast<cudaStream_t>(ctx.stream);
}

/// Makes the context's device current for the length of a call.
class DeviceGuard {
 public:
  explicit DeviceGuard(const tsp_context_t& ctx);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = -1;
  bool changed_ = false;
};

/// The stream belongs to the context's device.
[[nodiscard]] tsp_status_t check_stream(const tsp_context_t& ctx);
/// Memory that a kernel on the context's device reads or writes.
[[nodiscard]] tsp_status_t check_pointer(const tsp_context_t& ctx, const char* name,
                                         const void* pointer);
/// f16 or bf16, D 64 or 128, channels side by side, rows at multiples of 16 bytes; with `memory`
/// also that data and block table lie on the device.
[[nodiscard]] tsp_status_t check_rows(const tsp_context_t& ctx, const char* name,
                                      const tsp_tensor_t& view, bool memory);
[[nodiscard]] tsp_status_t check_same_dtype(const char* name, const tsp_tensor_t& view,
                                            const tsp_tensor_t& q);
/// indices and kept, where given.
[[nodiscard]] tsp_status_t check_set_memory(const tsp_context_t& ctx, const char* name,
                                            const tsp_index_sets_t& sets);

}  // namespace tsp::cuda
