// SPDX-License-Identifier: MIT
// Tensor maps of the warpgroup attention kernel, and the choice of its instance.
#include "cuda/attend/sm90/attend_sm90_launch.h"

#include <algorithm>

#include "cuda/launch.h"

namespace tsp::cuda {

struct Bf16;
struct F16;

tsp_status_t make_row_map(CUtensorMap* map, const Rows& rows, int32_t num_rows, int32_t num_heads,
                          int32_t head_dim, int32_t box_rows) {
  // The driver's library is no dependency: the runtime finds the function.
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found{};
  TSP_RETURN_IF_ERROR(check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry,
                                                             12000, cudaEnableDefault, &found),
                            "cuTensorMapEncodeTiled"));
  if (found != cudaDriverEntryPointSuccess || entry == nullptr) {
    return fail(TSP_INTERNAL, "attend: the driver has no cuTensorMapEncodeTiled");
  }
  const auto encode = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);
  const cuuint64_t sizes[] = {64, static_cast<cuuint64_t>(std::max(1, num_rows)),
                              static_cast<cuuint64_t>(head_dim / 64),
                              static_cast<cuuint64_t>(num_heads)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(rows.token_stride) * 2, 128,
                                static_cast<cuuint64_t>(rows.head_stride) * 2};  // in bytes
  const cuuint32_t box[] = {64, static_cast<cuuint32_t>(box_rows), 1, 1};
  const cuuint32_t steps[] = {1, 1, 1, 1};
  const CUresult result =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 4, rows.data, sizes, strides, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    return fail(TSP_INTERNAL, "attend: cuTensorMapEncodeTiled failed: CUDA driver error %d",
                static_cast<int>(result));
  }
  return TSP_OK;
}

tsp_status_t launch_attend_sm90(const AttendSm90Params& params, cudaStream_t stream) {
  if (params.head_dim == 128 && params.bf16) {
    return launch_attend_sm90_kernel<Bf16, 128>(params, stream);
  }
#ifndef TSP_CUDA_MIN
  if (params.head_dim == 128) return launch_attend_sm90_kernel<F16, 128>(params, stream);
  if (params.head_dim == 64 && params.bf16) {
    return launch_attend_sm90_kernel<Bf16, 64>(params, stream);
  }
  if (params.head_dim == 64) return launch_attend_sm90_kernel<F16, 64>(params, stream);
#endif
  return fail(TSP_INTERNAL, "attend: no warpgroup kernel for head dim %d, %s", params.head_dim,
              params.bf16 ? "bf16" : "f16");
}

}  // namespace tsp::cuda
