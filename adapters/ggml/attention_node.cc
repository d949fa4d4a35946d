// SPDX-License-Identifier: MIT
#include "adapters/ggml/attention_node.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "adapters/ggml/causal_mask.h"
#include "ggml.h"

namespace tsp::ggml_adapter {
namespace {

// Sources of GGML_OP_FLASH_ATTN_EXT, and its op_params (f32 each).
enum Source { kQ = 0, kK = 1, kV = 2, kMask = 3, kSinks = 4 };
enum Param { kScale = 0, kMaxBias = 1, kSoftCapValue = 2 };

float param_of(const ggml_tensor& node, Param param) {
  float value;
  std::memcpy(&value, &node.op_params[param], sizeof value);
  return value;
}

int32_t dtype_of(ggml_type type) {
  switch (type) {
    case GGML_TYPE_F32:
      return TSP_F32;
    case GGML_TYPE_F16:
      return TSP_F16;
    case GGML_TYPE_BF16:
      return TSP_BF16;
    default:
      return -1;
  }
}

size_t bytes_of(int32_t dtype) { return dtype == TSP_F32 ? 4 : 2; }

bool strides_fit(const ggml_tensor& tensor) {
  const int32_t dtype = dtype_of(tensor.type);
  if (dtype < 0) return false;
  const size_t size = bytes_of(dtype);
  return tensor.nb[0] == size && tensor.nb[1] % size == 0 && tensor.nb[2] % size == 0;
}

/// View of a tensor whose dimension `token_axis` counts tokens and the other one of 1, 2 heads.
tsp_tensor_t view_of(const ggml_tensor& tensor, int token_axis) {
  const int head_axis = 3 - token_axis;
  tsp_tensor_t view = {};
  view.data = tensor.data;
  view.dtype = dtype_of(tensor.type);
  const size_t size = bytes_of(view.dtype);
  view.tokens = tensor.ne[token_axis];
  view.heads = tensor.ne[head_axis];
  view.dim = tensor.ne[0];
  view.token_stride = static_cast<int64_t>(tensor.nb[token_axis] / size);
  view.head_stride = static_cast<int64_t>(tensor.nb[head_axis] / size);
  view.dim_stride = 1;
  return view;
}

}  // namespace

const char* refusal_text(Refusal refusal) {
  switch (refusal) {
    case Refusal::kNone:
      return "served";
    case Refusal::kNotAttention:
      return "not an attention node";
    case Refusal::kShortChunk:
      return "few query rows (decoding, or the tail of a prompt)";
    case Refusal::kKvType:
      return "quantised K or V";
    case Refusal::kHeadDims:
      return "different head dimensions of K and V";
    case Refusal::kSinks:
      return "attention sinks";
    case Refusal::kSoftCap:
      return "logit soft-cap";
    case Refusal::kAlibi:
      return "ALiBi";
    case Refusal::kStreams:
      return "several streams (sequences with a cache each)";
    case Refusal::kNoMask:
      return "no mask (not causal)";
    case Refusal::kMaskNotReady:
      return "a mask that the graph computes";
    case Refusal::kNotFirstKey:
      return "rows that do not see the first key (sliding window, or sequences in one cache)";
    case Refusal::kNotPrefix:
      return "a mask that is not a causal prefix";
    case Refusal::kLayout:
      return "an unexpected layout of q, k, v or the result";
    case Refusal::kLibrary:
      return "tokensparse cannot serve the shape";
    case Refusal::kCount:
      break;
  }
  return "unknown";
}

int32_t layer_of(const ggml_tensor& node) {
  // "cache_k_l7"; some architectures put a tag in: "cache_<tag>k_l7".
  const ggml_tensor* k = node.src[kK];
  if (k == nullptr || k->view_src == nullptr) return -1;
  const char* name = k->view_src->name;
  if (std::strncmp(name, "cache_", 6) != 0) return -1;
  const char* tail = std::strstr(name + 6, "k_l");
  int layer = -1;
  if (tail == nullptr || std::sscanf(tail, "k_l%d", &layer) != 1) return -1;
  return layer;
}

AttentionServer::AttentionServer(tsp_context_t* ctx, Options options)
    : ctx_(ctx), options_(std::move(options)) {}

void AttentionServer::Free::operator()(void* memory) const { std::free(memory); }

Refusal AttentionServer::check_shape(const ggml_tensor& node) const {
  if (node.op != GGML_OP_FLASH_ATTN_EXT) return Refusal::kNotAttention;
  const ggml_tensor *q = node.src[kQ], *k = node.src[kK], *v = node.src[kV],
                    *mask = node.src[kMask];
  if (q->ne[1] < options_.min_rows) return Refusal::kShortChunk;
  if (dtype_of(k->type) < 0 || v->type != k->type) return Refusal::kKvType;
  if (q->ne[0] != k->ne[0] || k->ne[0] != v->ne[0]) return Refusal::kHeadDims;
  if (node.src[kSinks] != nullptr) return Refusal::kSinks;
  if (param_of(node, kSoftCapValue) != 0) return Refusal::kSoftCap;
  if (param_of(node, kMaxBias) != 0) return Refusal::kAlibi;
  if (q->ne[3] != 1 || k->ne[3] != 1 || v->ne[3] != 1) return Refusal::kStreams;
  if (mask == nullptr) return Refusal::kNoMask;
  const bool mask_fits = mask->type == GGML_TYPE_F16 && mask->nb[0] == sizeof(ggml_fp16_t) &&
                         mask->ne[0] == k->ne[1] && mask->ne[1] >= q->ne[1] && mask->ne[2] == 1 &&
                         mask->ne[3] == 1;
  const bool fits = mask_fits && q->type == GGML_TYPE_F32 && node.type == GGML_TYPE_F32 &&
                    strides_fit(*q) && strides_fit(*k) && strides_fit(*v) && strides_fit(node) &&
                    v->ne[1] == k->ne[1] && v->ne[2] == k->ne[2] && q->ne[2] % k->ne[2] == 0 &&
                    node.ne[0] == q->ne[0] && node.ne[1] == q->ne[2] && node.ne[2] == q->ne[1] &&
                    k->ne[1] <= INT32_MAX;
  return fits ? Refusal::kNone : Refusal::kLayout;
}

Refusal AttentionServer::check(const ggml_tensor& node) {
  const auto judge = [&]() {
    const Refusal shape = check_shape(node);
    if (shape != Refusal::kNone) return shape;
    // A leaf is an input, whose data is there before the graph runs.
    ggml_tensor mask = *node.src[kMask];
    if (mask.op != GGML_OP_NONE || mask.data == nullptr) return Refusal::kMaskNotReady;
    mask.ne[1] = node.src[kQ]->ne[1];  // older masks are padded with rows that mean nothing
    const CausalMask causal = read_causal_mask(mask);
    if (causal.kind == MaskKind::kNotFirst) return Refusal::kNotFirstKey;
    if (causal.kind == MaskKind::kNotPrefix) return Refusal::kNotPrefix;
    const tsp_prefill_params_t params = params_of(node, causal.k_len);
    size_t bytes = 0;
    if (tsp_prefill_workspace(ctx_, &params, &bytes) != TSP_OK || !reserve(bytes)) {
      return Refusal::kLibrary;
    }
    checked_ = &node;
    checked_k_len_ = causal.k_len;
    return Refusal::kNone;
  };
  const Refusal refusal = judge();
  if (refusal != Refusal::kNone && refusal != Refusal::kNotAttention) {
    ++stats_of(node).refused[static_cast<size_t>(refusal)];
  }
  return refusal;
}

tsp_status_t AttentionServer::serve(ggml_tensor& node) {
  const auto start = std::chrono::steady_clock::now();
  if (checked_ != &node && check(node) != Refusal::kNone) return TSP_UNSUPPORTED;
  checked_ = nullptr;
  int32_t kept = checked_k_len_;
  tsp_prefill_params_t params = params_of(node, checked_k_len_);
  params.selected.kept = &kept;
  params.workspace = workspace_.get();
  params.workspace_bytes = workspace_bytes_;
  const tsp_status_t status = tsp_prefill(ctx_, &params);
  if (status != TSP_OK) return status;
  LayerStats& stats = stats_of(node);
  ++stats.served;
  stats.served_rows += params.q.tokens;
  stats.sparse += kept < checked_k_len_;
  stats.keys += checked_k_len_;
  stats.kept += kept;
  stats.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return TSP_OK;
}

void AttentionServer::reset_stats() {
  layers_.clear();
  no_layer_ = {};
}

LayerStats& AttentionServer::stats_of(const ggml_tensor& node) {
  constexpr int32_t kMaxLayers = 4096;  // a name is only a name
  const int32_t layer = layer_of(node);
  if (layer < 0 || layer >= kMaxLayers) return no_layer_;
  if (static_cast<size_t>(layer) >= layers_.size()) layers_.resize(static_cast<size_t>(layer) + 1);
  return layers_[static_cast<size_t>(layer)];
}

tsp_prefill_params_t AttentionServer::params_of(const ggml_tensor& node, int32_t k_len) const {
  tsp_prefill_params_t params = options_.op;
  const int32_t layer = layer_of(node);
  const auto index = static_cast<size_t>(layer);
  if (layer < 0 || index >= options_.sparse_layers.size() || !options_.sparse_layers[index]) {
    params.coverage = 0;
    params.keep = 0;
  }
  params.scale = param_of(node, kScale);
  params.q = view_of(*node.src[kQ], 1);
  params.k = view_of(*node.src[kK], 1);
  params.v = view_of(*node.src[kV], 1);
  params.k.tokens = params.v.tokens = k_len;  // the rest of the cache is padding
  params.out = view_of(node, 2);
  params.lse = {};
  params.selected = {};
  params.batch = {};
  params.workspace = nullptr;
  params.workspace_bytes = 0;
  return params;
}

bool AttentionServer::reserve(size_t bytes) {
  if (bytes <= workspace_bytes_) return true;
  constexpr size_t kAlign = 64;
  const size_t rounded = (bytes + bytes / 4 + kAlign - 1) / kAlign * kAlign;  // chunks grow
  workspace_.reset();
  workspace_bytes_ = 0;
  workspace_.reset(std::aligned_alloc(kAlign, rounded));
  if (workspace_ == nullptr) return false;
  workspace_bytes_ = rounded;
  return true;
}

}  // namespace tsp::ggml_adapter
