// SPDX-License-Identifier: MIT
// The CUDA backend's op table, and the opening of a context on a device.
#include "cuda/ops.h"

#include <string>

#include "core/op_table.h"

namespace tsp {
namespace cuda {
namespace {

constexpr int kMinMajor = 8;  // cp.async, ldmatrix and mma.sync for bf16: Ampere
constexpr const char* kBaseIsa = "sm_80";

constexpr OpTable kOps{
    .backend = "cuda",
    .score = score,
    .select = select,
    .compress = compress,
    .attend = attend,
    .decompress = decompress,
    .estimate = estimate,
    .prefill = prefill,
    .score_workspace = score_workspace,
    .select_workspace = select_workspace,
    .attend_workspace = attend_workspace,
    .estimate_workspace = estimate_workspace,
    .prefill_workspace = prefill_workspace,
    .check_score = nullptr,
    .check_attend = check_attend,
    .check_estimate = check_estimate,
    .check_prefill = check_prefill,
    .prefill_pays = nullptr,
    .paying_keys = kMinPayingKeys,
    .paying_rows = kMinPayingQueries,
};

}  // namespace
}  // namespace cuda

tsp_status_t cuda_open(tsp_context_t& ctx) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    (void)cudaGetLastError();
    return fail(TSP_UNAVAILABLE, "backend: no CUDA device (%s)",
                error == cudaSuccess ? "none found" : cudaGetErrorString(error));
  }
  if (ctx.device < 0 || ctx.device >= count) {
    return fail(TSP_INVALID_ARGUMENT, "device: must be between 0 and %d, got %d", count - 1,
                ctx.device);
  }
  int major = 0, minor = 0;
  auto state = std::make_shared<cuda::State>();
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ctx.device) !=
          cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ctx.device) !=
          cudaSuccess ||
      cudaDeviceGetAttribute(&state->num_sms, cudaDevAttrMultiProcessorCount, ctx.device) !=
          cudaSuccess) {
    (void)cudaGetLastError();
    return fail(TSP_UNAVAILABLE, "device: CUDA device %d does not answer", ctx.device);
  }
  if (major < cuda::kMinMajor) {
    return fail(TSP_UNAVAILABLE, "device: must have compute capability 8.0 or later, got %d.%d",
                major, minor);
  }
  const cuda::DeviceGuard guard(ctx);
  TSP_RETURN_IF_ERROR(cuda::check_stream(ctx));
  // "sm_90" is our own kernels alone, "sm_90+cudnn" has cuDNN beside them, "sm_80" the kernels that
  // run everywhere. Where warpgroup products are, our own are faster than cuDNN.
  const std::string wanted = ctx.isa;
  const std::string own = "sm_" + std::to_string(major) + std::to_string(minor);
  ctx.isa = wanted == cuda::kBaseIsa ? wanted : own;
  state->warpgroups = major == 9 && ctx.isa == own;
  if (wanted == own + "+cudnn" || (wanted.empty() && !state->warpgroups)) {
    state->cudnn = cuda::CudnnAttend::load();
  }
  if (state->cudnn != nullptr) {
    TSP_RETURN_IF_ERROR(state->side.open());
    ctx.isa += "+cudnn";
  }
  if (!wanted.empty() && wanted != ctx.isa) {
    return fail(TSP_UNAVAILABLE, "isa: must be one this machine has (%s), got \"%s\"",
                ctx.isa.c_str(), wanted.c_str());
  }
  ctx.backend_state = std::move(state);
  ctx.ops = &cuda::kOps;
  return TSP_OK;
}

}  // namespace tsp
