// SPDX-License-Identifier: MIT
// The CUDA backend's op table, and the opening of a context on a device.
#include "cuda/ops.h"

#include <string>

#include "core/op_table.h"
#include "cuda/isa.h"
#include "cuda/prefill_cost.h"

namespace tsp {
namespace cuda {
namespace {

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
    .pattern_pays = nullptr,
    .may_pay = prefill_may_pay,
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
  cuda::Isa isa;
  const std::string wanted = ctx.isa;
  TSP_RETURN_IF_ERROR(cuda::choose_isa(major, minor, wanted, &isa));
  const cuda::DeviceGuard guard(ctx);
  TSP_RETURN_IF_ERROR(cuda::check_stream(ctx));
  ctx.isa = isa.name;
  state->warpgroups = isa.warpgroups;
  if (isa.cudnn) state->cudnn = cuda::CudnnAttend::load();
  if (state->cudnn != nullptr) {
    TSP_RETURN_IF_ERROR(state->side.open());
    ctx.isa += "+cudnn";
  }
  TSP_RETURN_IF_ERROR(cuda::check_isa(wanted, ctx.isa));
  ctx.backend_state = std::move(state);
  ctx.ops = &cuda::kOps;
  return TSP_OK;
}

}  // namespace tsp
