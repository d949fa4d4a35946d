// SPDX-License-Identifier: MIT
// cuDNN's fused attention through the headers of cudnn-frontend. libcudnn and what the headers need
// of CUDA are found at run time; where they are not, load() gives null and nobody misses them.
#include "cuda/attend/cudnn_attend.h"

#include <cudnn_frontend.h>
#include <dlfcn.h>

#include <unordered_map>

#include "core/error.h"
#include "cuda/launch.h"

namespace cudnn_frontend {
void* cudnn_dlhandle = nullptr;  // the headers look up every cuDNN symbol here
}

namespace tsp::cuda {
namespace {

namespace fe = cudnn_frontend;
using Tensor = std::shared_ptr<fe::graph::Tensor_attributes>;

enum Uid : int64_t { kQ = 1, kK, kV, kOut, kLse, kQLens, kKvLens };

/// Building a plan may allocate inside cuDNN, which a stream capture of this thread would refuse.
class RelaxedCapture {
 public:
  RelaxedCapture() { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

struct ShapeHash {
  size_t operator()(const CudnnShape& shape) const { return hash_of(shape); }
};

struct Plan {
  std::shared_ptr<fe::graph::Graph> graph;  // null: cuDNN refuses the shape
  int64_t workspace_bytes = 0;
};

Tensor describe(fe::graph::Graph& graph, const char* name, Uid uid, int64_t batch, int64_t heads,
                int64_t len, int64_t dim, const CudnnShape::Strides& strides) {
  return graph.tensor(fe::graph::Tensor_attributes()
                          .set_name(name)
                          .set_uid(uid)
                          .set_dim({batch, heads, len, dim})
                          .set_stride({strides.batch, strides.head, strides.token, 1}));
}

Plan build(cudnnHandle_t handle, const CudnnShape& s) {
  auto graph = std::make_shared<fe::graph::Graph>();
  const auto type = s.dtype == TSP_BF16 ? fe::DataType_t::BFLOAT16 : fe::DataType_t::HALF;
  graph->set_io_data_type(type)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);
  const Tensor q = describe(*graph, "q", kQ, s.batch, s.q_heads, s.q_len, s.head_dim, s.q);
  const Tensor k = describe(*graph, "k", kK, s.batch, s.kv_heads, s.kv_len, s.head_dim, s.k);
  const Tensor v = describe(*graph, "v", kV, s.batch, s.kv_heads, s.kv_len, s.head_dim, s.v);
  const auto lens = [&](const char* name, Uid uid) {
    return graph->tensor(fe::graph::Tensor_attributes()
                             .set_name(name)
                             .set_uid(uid)
                             .set_dim({s.batch, 1, 1, 1})
                             .set_stride({1, 1, 1, 1})
                             .set_data_type(fe::DataType_t::INT32));
  };
  auto options = fe::graph::SDPA_attributes()
                     .set_name("attend")
                     .set_generate_stats(s.with_lse)
                     .set_attn_scale(s.scale)
                     .set_diagonal_band_right_bound(0);
  // The last query sees the last key. With lengths on the device, queries before the first key see
  // nothing and cost nothing, which rows beyond a short q_len would not.
  const bool square = !s.padded && s.q_len == s.kv_len;
  options.set_diagonal_alignment(square ? fe::DiagonalAlignment_t::TOP_LEFT
                                        : fe::DiagonalAlignment_t::BOTTOM_RIGHT);
  if (s.padded) {
    options.set_padding_mask(true)
        .set_seq_len_q(lens("q_lens", kQLens))
        .set_seq_len_kv(lens("kv_lens", kKvLens));
  }
  auto [out, stats] = graph->sdpa(q, k, v, options);
  out->set_output(true)
      .set_uid(kOut)
      .set_dim({s.batch, s.q_heads, s.q_len, s.head_dim})
      .set_stride({s.out.batch, s.out.head, s.out.token, 1});
  if (s.with_lse) {
    stats->set_output(true)
        .set_uid(kLse)
        .set_data_type(fe::DataType_t::FLOAT)
        .set_dim({s.batch, s.q_heads, s.q_len, 1})
        .set_stride({s.lse.batch, s.lse.head, s.lse.token, 1});
  }
  Plan plan;
  const RelaxedCapture relaxed;
  if (graph->build(handle, {fe::HeurMode_t::A}).is_bad()) return plan;
  if (graph->get_workspace_size(plan.workspace_bytes).is_bad()) return plan;
  plan.graph = std::move(graph);
  return plan;
}

}  // namespace

struct CudnnAttend::Impl {
  cudnnHandle_t handle = nullptr;
  std::unordered_map<CudnnShape, Plan, ShapeHash> plans;
};

CudnnAttend::CudnnAttend() : impl_(std::make_unique<Impl>()) {}
CudnnAttend::~CudnnAttend() {
  if (impl_->handle != nullptr) (void)fe::detail::destroy_handle(impl_->handle);
}

std::unique_ptr<CudnnAttend> CudnnAttend::load() {
  if (fe::cudnn_dlhandle == nullptr) {
    fe::cudnn_dlhandle = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_GLOBAL);
    if (fe::cudnn_dlhandle == nullptr) return nullptr;
  }
  try {
    auto engine = std::make_unique<CudnnAttend>();
    if (fe::detail::create_handle(&engine->impl_->handle) != CUDNN_STATUS_SUCCESS) return nullptr;
    return engine;
  } catch (const std::exception&) {
    return nullptr;  // no libcudart beside it, or one without the symbols it needs
  }
}

bool CudnnAttend::prepare(const CudnnShape& shape, size_t* workspace_bytes) {
  auto found = impl_->plans.find(shape);
  if (found == impl_->plans.end()) {
    Plan plan;
    try {
      plan = build(impl_->handle, shape);
    } catch (const std::exception&) {
      plan = {};
    }
    found = impl_->plans.emplace(shape, std::move(plan)).first;
  }
  if (found->second.graph == nullptr) return false;
  *workspace_bytes = static_cast<size_t>(found->second.workspace_bytes);
  return true;
}

tsp_status_t CudnnAttend::run(const CudnnShape& shape, const CudnnTensors& memory,
                              cudaStream_t stream) {
  const auto found = impl_->plans.find(shape);
  if (found == impl_->plans.end() || found->second.graph == nullptr) {
    return fail(TSP_INTERNAL, "attend: no cuDNN plan was prepared for this shape");
  }
  std::unordered_map<int64_t, void*> pointers = {
      {kQ, const_cast<void*>(memory.q)},
      {kK, const_cast<void*>(memory.k)},
      {kV, const_cast<void*>(memory.v)},
      {kOut, memory.out},
  };
  if (shape.padded) {
    pointers[kQLens] = const_cast<int32_t*>(memory.q_lens);
    pointers[kKvLens] = const_cast<int32_t*>(memory.kv_lens);
  }
  if (shape.with_lse) pointers[kLse] = memory.lse;
  try {
    if (fe::detail::set_stream(impl_->handle, stream) != CUDNN_STATUS_SUCCESS) {
      return fail(TSP_INTERNAL, "attend: cuDNN refused the stream");
    }
    auto status = found->second.graph->execute(impl_->handle, pointers, memory.workspace);
    if (status.is_bad()) {
      return fail(TSP_INTERNAL, "attend: cuDNN failed: %s", status.get_message().c_str());
    }
  } catch (const std::exception& e) {
    return fail(TSP_INTERNAL, "attend: cuDNN failed: %s", e.what());
  }
  return TSP_OK;
}

}  // namespace tsp::cuda
