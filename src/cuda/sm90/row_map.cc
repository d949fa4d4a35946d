// SPDX-License-Identifier: MIT
#include "cuda/sm90/row_map.h"

#include <algorithm>
#include <atomic>

#include "cuda/launch.h"

namespace tsp::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

/// The driver's library is no dependency: the runtime finds the function, once.
tsp_status_t find_encode(const char* op, Encode& encode) {
  static std::atomic<void*> known{nullptr};
  void* entry = known.load(std::memory_order_acquire);
  if (entry == nullptr) {
    cudaDriverEntryPointQueryResult found{};
    TSP_RETURN_IF_ERROR(check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry,
                                                               12000, cudaEnableDefault, &found),
                              op));
    if (found != cudaDriverEntryPointSuccess || entry == nullptr) {
      return fail(TSP_INTERNAL, "%s: the driver has no cuTensorMapEncodeTiled", op);
    }
    known.store(entry, std::memory_order_release);
  }
  encode = reinterpret_cast<Encode>(entry);
  return TSP_OK;
}

}  // namespace

tsp_status_t make_row_map(const char* op, CUtensorMap* map, const Rows& rows, int32_t num_rows,
                          int32_t num_heads, int32_t head_dim, int32_t box_rows) {
  Encode encode = nullptr;
  TSP_RETURN_IF_ERROR(find_encode(op, encode));
  const cuuint64_t sizes[] = {64, static_cast<cuuint64_t>(std::max(1, num_rows)),
                              static_cast<cuuint64_t>(head_dim / 64),
                              static_cast<cuuint64_t>(num_heads)};
  // In bytes. That of a single row or head leads nowhere, and may be what the driver refuses.
  const auto bytes = [](int32_t count, int64_t stride) {
    return count > 1 ? static_cast<cuuint64_t>(stride) * 2 : cuuint64_t{128};
  };
  const cuuint64_t strides[] = {bytes(num_rows, rows.token_stride), 128,
                                bytes(num_heads, rows.head_stride)};
  const cuuint32_t box[] = {64, static_cast<cuuint32_t>(box_rows), 1, 1};
  const cuuint32_t steps[] = {1, 1, 1, 1};
  const CUresult result =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 4, rows.data, sizes, strides, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    return fail(TSP_INTERNAL, "%s: cuTensorMapEncodeTiled failed: CUDA driver error %d", op,
                static_cast<int>(result));
  }
  return TSP_OK;
}

}  // namespace tsp::cuda
