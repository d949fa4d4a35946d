// SPDX-License-Identifier: MIT
#include "cuda/state.h"

#include <cinttypes>
#include <string>

#include "core/dtype.h"

namespace tsp::cuda {

DeviceGuard::DeviceGuard(const tsp_context_t& ctx) {
  changed_ = cudaGetDevice(&previous_) == cudaSuccess && previous_ != ctx.device &&
             cudaSetDevice(ctx.device) == cudaSuccess;
}
DeviceGuard::~DeviceGuard() {
  if (changed_) (void)cudaSetDevice(previous_);
}

tsp_status_t check_stream(const tsp_context_t& ctx) {
  if (ctx.stream == nullptr) return TSP_OK;
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(stream_of(ctx), &capture) == cudaSuccess &&
      capture != cudaStreamCaptureStatusNone) {
    return TSP_OK;  // a stream that captures answers nothing more
  }
  int device = -1;
  const cudaError_t error = cudaStreamGetDevice(stream_of(ctx), &device);
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    return fail(TSP_INVALID_ARGUMENT, "stream: must be a stream of device %d: %s", ctx.device,
                cudaGetErrorString(error));
  }
  if (device != ctx.device) {
    return fail(TSP_INVALID_ARGUMENT, "stream: must be a stream of device %d, got one of device %d",
                ctx.device, device);
  }
  return TSP_OK;
}

tsp_status_t check_pointer(const tsp_context_t& ctx, const char* name, const void* pointer) {
  cudaPointerAttributes attributes{};
  const cudaError_t error = cudaPointerGetAttributes(&attributes, pointer);
  if (error != cudaSuccess) (void)cudaGetLastError();
  const bool device_memory = error == cudaSuccess && (attributes.type == cudaMemoryTypeDevice ||
                                                      attributes.type == cudaMemoryTypeManaged);
  if (!device_memory) {
    return fail(TSP_INVALID_ARGUMENT, "%s: must be memory of CUDA device %d, got host memory (%p)",
                name, ctx.device, pointer);
  }
  if (attributes.type == cudaMemoryTypeDevice && attributes.device != ctx.device) {
    return fail(TSP_INVALID_ARGUMENT, "%s: must be memory of CUDA device %d, got device %d", name,
                ctx.device, attributes.device);
  }
  return TSP_OK;
}

tsp_status_t check_rows(const tsp_context_t& ctx, const char* name, const tsp_tensor_t& view,
                        bool memory) {
  if (view.dtype != TSP_F16 && view.dtype != TSP_BF16) {
    return fail(TSP_UNSUPPORTED, "%s.dtype: the cuda backend takes f16 and bf16, got %s", name,
                dtype_name(view.dtype));
  }
  if (view.dim != 64 && view.dim != 128) {
    return fail(TSP_UNSUPPORTED, "%s.dim: the cuda backend takes 64 and 128, got %" PRId64, name,
                view.dim);
  }
  if (view.dim_stride != 1) {
    return fail(TSP_UNSUPPORTED, "%s.dim_stride: the cuda backend takes 1, got %" PRId64, name,
                view.dim_stride);
  }
  const bool paged = view.block_table != nullptr;
  const int64_t strides[] = {view.token_stride, view.head_stride, paged ? view.block_stride : 0};
  const char* const names[] = {"token_stride", "head_stride", "block_stride"};
  for (int i = 0; i < 3; ++i) {
    if (strides[i] % 8 != 0) {
      return fail(TSP_UNSUPPORTED,
                  "%s.%s: the cuda backend takes multiples of 8 elements (16 bytes), got %" PRId64,
                  name, names[i], strides[i]);
    }
  }
  if (!memory || view.data == nullptr) return TSP_OK;
  if (reinterpret_cast<uintptr_t>(view.data) % 16 != 0) {
    return fail(TSP_UNSUPPORTED, "%s.data: the cuda backend takes 16-byte aligned data, got %p",
                name, view.data);
  }
  TSP_RETURN_IF_ERROR(check_pointer(ctx, name, view.data));
  return paged ? check_pointer(ctx, name, view.block_table) : TSP_OK;
}

tsp_status_t check_same_dtype(const char* name, const tsp_tensor_t& view, const tsp_tensor_t& q) {
  if (view.dtype == q.dtype) return TSP_OK;
  return fail(TSP_UNSUPPORTED, "%s.dtype: the cuda backend takes the dtype of q (%s), got %s", name,
              dtype_name(q.dtype), dtype_name(view.dtype));
}

tsp_status_t check_set_memory(const tsp_context_t& ctx, const char* name,
                              const tsp_index_sets_t& sets) {
  const std::string prefix = name;
  if (sets.indices != nullptr) {
    TSP_RETURN_IF_ERROR(check_pointer(ctx, (prefix + ".indices").c_str(), sets.indices));
  }
  if (sets.kept == nullptr) return TSP_OK;
  return check_pointer(ctx, (prefix + ".kept").c_str(), sets.kept);
}

}  // namespace tsp::cuda
