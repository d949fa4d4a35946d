// SPDX-License-Identifier: MIT
#include "adapters/ggml/attention_shape.h"

#include <cstdio>
#include <cstring>

namespace tsp::ggml_adapter {
namespace {

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

/// Whether a view can say where the rows are; those of quantised types are whole blocks.
bool strides_fit(const ggml_tensor& tensor) {
  const int32_t dtype = dtype_of(tensor.type);
  if (dtype < 0) return true;
  const size_t size = bytes_of(dtype);
  return tensor.nb[0] == size && tensor.nb[1] % size == 0 && tensor.nb[2] % size == 0;
}

}  // namespace

float param_of(const ggml_tensor& node, Param param) {
  float value;
  std::memcpy(&value, &node.op_params[param], sizeof value);
  return value;
}

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
    case Refusal::kNoMask:
      return "no mask (not causal)";
    case Refusal::kMaskNotReady:
      return "a mask that the graph computes";
    case Refusal::kMask:
      return "a mask of another kind (sliding window, not causal, many short sequences)";
    case Refusal::kLayout:
      return "an unexpected layout of q, k, v or the result";
    case Refusal::kMemory:
      return "the limit on memory";
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

Refusal refusal_of_shape(const ggml_tensor& node, int32_t serve_rows, TypeTraits type_traits) {
  if (node.op != GGML_OP_FLASH_ATTN_EXT) return Refusal::kNotAttention;
  const ggml_tensor *q = node.src[kQ], *k = node.src[kK], *v = node.src[kV],
                    *mask = node.src[kMask];
  if (q->ne[1] < serve_rows) return Refusal::kShortChunk;
  if (dtype_of(k->type) < 0 || v->type != k->type) {
    const auto readable = [&](ggml_type type) {
      return type_traits != nullptr && type_traits(type)->to_float != nullptr;
    };
    if (!readable(k->type) || !readable(v->type)) return Refusal::kKvType;
  }
  if (q->ne[0] != k->ne[0] || k->ne[0] != v->ne[0]) return Refusal::kHeadDims;
  if (node.src[kSinks] != nullptr) return Refusal::kSinks;
  if (param_of(node, kSoftCapValue) != 0) return Refusal::kSoftCap;
  if (param_of(node, kMaxBias) != 0) return Refusal::kAlibi;
  if (mask == nullptr) return Refusal::kNoMask;
  const int64_t streams = q->ne[3];
  const bool mask_fits = mask->type == GGML_TYPE_F16 && mask->nb[0] == sizeof(ggml_fp16_t) &&
                         mask->ne[0] == k->ne[1] && mask->ne[1] >= q->ne[1] && mask->ne[2] == 1 &&
                         mask->ne[3] == streams;
  const bool fits = mask_fits && q->type == GGML_TYPE_F32 && node.type == GGML_TYPE_F32 &&
                    strides_fit(*q) && strides_fit(*k) && strides_fit(*v) && strides_fit(node) &&
                    v->ne[1] == k->ne[1] && v->ne[2] == k->ne[2] && q->ne[2] % k->ne[2] == 0 &&
                    k->ne[3] == streams && v->ne[3] == streams && node.ne[0] == q->ne[0] &&
                    node.ne[1] == q->ne[2] && node.ne[2] == q->ne[1] && k->ne[1] <= INT32_MAX;
  return fits ? Refusal::kNone : Refusal::kLayout;
}

bool dequantises(const ggml_tensor& node) {
  return dtype_of(node.src[kK]->type) < 0 || node.src[kK]->type != node.src[kV]->type;
}

tsp_tensor_t view_of(const ggml_tensor& tensor, int token_axis, int64_t stream, int64_t first) {
  const int head_axis = 3 - token_axis;
  tsp_tensor_t view = {};
  view.data = static_cast<char*>(tensor.data) + static_cast<size_t>(stream) * tensor.nb[3] +
              static_cast<size_t>(first) * tensor.nb[token_axis];
  view.dtype = dtype_of(tensor.type);
  const size_t size = bytes_of(view.dtype);
  view.tokens = tensor.ne[token_axis] - first;
  view.heads = tensor.ne[head_axis];
  view.dim = tensor.ne[0];
  view.token_stride = static_cast<int64_t>(tensor.nb[token_axis] / size);
  view.head_stride = static_cast<int64_t>(tensor.nb[head_axis] / size);
  view.dim_stride = 1;
  return view;
}

void pick_cells(tsp_tensor_t& view, const RowGroup& rows) {
  const auto size = static_cast<int64_t>(bytes_of(view.dtype));
  view.tokens = rows.k_len;
  if (rows.cells.empty()) {
    view.data = static_cast<char*>(view.data) + rows.first_cell * view.token_stride * size;
    return;
  }
  view.block_table = rows.cells.data();  // pages of one token
  view.block_size = 1;
  view.block_stride = view.token_stride;
  view.table_stride = rows.k_len;
}

void dequantise(const ggml_tensor& node, int64_t stream, int64_t cells, TypeTraits type_traits,
                float* out) {
  for (const ggml_tensor* cache : {node.src[kK], node.src[kV]}) {
    const ggml_to_float_t to_float = type_traits(cache->type)->to_float;
    const char* base =
        static_cast<const char*>(cache->data) + static_cast<size_t>(stream) * cache->nb[3];
    const int64_t dim = cache->ne[0], heads = cache->ne[2];
    for (int64_t cell = 0; cell < cells; ++cell) {
      for (int64_t head = 0; head < heads; ++head) {
        to_float(base + static_cast<size_t>(cell) * cache->nb[1] +
                     static_cast<size_t>(head) * cache->nb[2],
                 out + (cell * heads + head) * dim, dim);
      }
    }
    out += cache->ne[1] * heads * dim;
  }
}

tsp_tensor_t dequantised_view(const ggml_tensor& node, int half, float* data) {
  ggml_tensor k = *node.src[kK];
  k.type = GGML_TYPE_F32;
  k.nb[2] = static_cast<size_t>(k.ne[0]) * sizeof(float);
  k.nb[1] = static_cast<size_t>(k.ne[2]) * k.nb[2];
  k.data = data + half * k.ne[0] * k.ne[1] * k.ne[2];
  return view_of(k, 1, 0, 0);
}

}  // namespace tsp::ggml_adapter
