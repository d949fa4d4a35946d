// SPDX-License-Identifier: MIT
#include "cuda/instances.h"

#include "core/dtype.h"
#include "core/error.h"

namespace tsp::cuda {

struct Bf16;
struct F16;

namespace {

tsp_status_t no_instance(const char* op, int32_t dtype, int32_t head_dim) {
  return fail(TSP_UNSUPPORTED, "%s: this build has no kernel for %s, head dim %d", op,
              dtype_name(dtype), head_dim);
}

}  // namespace

tsp_status_t launch_attend_any(int32_t dtype, int32_t head_dim, const AttendArgs& args,
                               cudaStream_t stream) {
  if (dtype == TSP_BF16 && head_dim == 128) return launch_attend<Bf16, 128>(args, stream);
#ifndef TSP_CUDA_MIN
  if (dtype == TSP_BF16 && head_dim == 64) return launch_attend<Bf16, 64>(args, stream);
  if (dtype == TSP_F16 && head_dim == 128) return launch_attend<F16, 128>(args, stream);
  if (dtype == TSP_F16 && head_dim == 64) return launch_attend<F16, 64>(args, stream);
#endif
  return no_instance("attend", dtype, head_dim);
}

tsp_status_t launch_score_any(int32_t dtype, int32_t head_dim, const ScoreArgs& args,
                              cudaStream_t stream) {
  const auto run = [&]<typename Type, int kHeadDim>() {
    return args.plan.wide ? launch_wide_score<Type, kHeadDim>(args, stream)
                          : launch_score<Type, kHeadDim>(args, stream);
  };
  if (dtype == TSP_BF16 && head_dim == 128) return run.template operator()<Bf16, 128>();
#ifndef TSP_CUDA_MIN
  if (dtype == TSP_BF16 && head_dim == 64) return run.template operator()<Bf16, 64>();
  if (dtype == TSP_F16 && head_dim == 128) return run.template operator()<F16, 128>();
  if (dtype == TSP_F16 && head_dim == 64) return run.template operator()<F16, 64>();
#endif
  return no_instance("score", dtype, head_dim);
}

}  // namespace tsp::cuda
