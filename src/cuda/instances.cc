// SPDX-License-Identifier: MIT
#include "cuda/instances.h"

#include "core/dtype.h"
#include "core/error.h"

namespace tsp::cuda {

struct Bf16;
struct F16;

namespace {

/// Calls run<Type, kHeadDim>() of the instance.
template <typename Run>
tsp_status_t with_instance(const char* op, int32_t dtype, int32_t head_dim, Run&& run) {
  if (dtype == TSP_BF16 && head_dim == 128) return run.template operator()<Bf16, 128>();
#ifndef TSP_CUDA_MIN
  if (dtype == TSP_BF16 && head_dim == 64) return run.template operator()<Bf16, 64>();
  if (dtype == TSP_F16 && head_dim == 128) return run.template operator()<F16, 128>();
  if (dtype == TSP_F16 && head_dim == 64) return run.template operator()<F16, 64>();
#endif
  return fail(TSP_UNSUPPORTED, "%s: this build has no kernel for %s, head dim %d", op,
              dtype_name(dtype), head_dim);
}

}  // namespace

tsp_status_t launch_attend_any(int32_t dtype, int32_t head_dim, const AttendArgs& args,
                               cudaStream_t stream) {
  return with_instance("attend", dtype, head_dim, [&]<typename Type, int kHeadDim>() {
    return launch_attend<Type, kHeadDim>(args, stream);
  });
}

tsp_status_t launch_left_out_any(int32_t dtype, int32_t head_dim, bool wide,
                                 const LeftOutArgs& args, cudaStream_t stream) {
  return with_instance("attend", dtype, head_dim, [&]<typename Type, int kHeadDim>() {
    return wide ? launch_wide_left_out<Type, kHeadDim>(args, stream)
                : launch_left_out<Type, kHeadDim>(args, stream);
  });
}

tsp_status_t launch_score_any(int32_t dtype, int32_t head_dim, const ScoreArgs& args,
                              cudaStream_t stream) {
  return with_instance("score", dtype, head_dim, [&]<typename Type, int kHeadDim>() {
    return args.plan.wide ? launch_wide_score<Type, kHeadDim>(args, stream)
                          : launch_score<Type, kHeadDim>(args, stream);
  });
}

}  // namespace tsp::cuda
