// SPDX-License-Identifier: MIT
// What an attention node of ggml looks like: whether its shapes, types and strides are ones that we
// serve, and its tensors as views. Reads structs alone, no data.
#pragma once

#include <cstdint>

#include "adapters/ggml/row_groups.h"
#include "ggml.h"
#include "tokensparse/tokensparse.h"

namespace tsp::ggml_adapter {

// Sources of GGML_OP_FLASH_ATTN_EXT, and its op_params (f32 each).
enum Source { kQ = 0, kK = 1, kV = 2, kMask = 3, kSinks = 4 };
enum Param { kScale = 0, kMaxBias = 1, kSoftCapValue = 2 };

float param_of(const ggml_tensor& node, Param param);

/// Why a node is ggml's.
enum class Refusal {
  kNone,
  kNotAttention,  // another operation; not counted
  kShortChunk,    // too few query rows: decoding, or the tail of a prompt
  kKvType,
  kHeadDims,
  kSinks,
  kSoftCap,
  kAlibi,
  kNoMask,
  kMaskNotReady,
  kMask,
  kLayout,
  kMemory,
  kLibrary,
  kCount,
};
/// "quantised K or V" and so on: completes "left to ggml: ...".
const char* refusal_text(Refusal refusal);

/// ggml_get_type_traits, to read quantised caches with; null leaves those nodes to ggml.
using TypeTraits = const ggml_type_traits* (*)(ggml_type);

/// Why a node cannot be served, going by shapes, types and strides; `serve_rows` is the fewest
/// query rows.
[[nodiscard]] Refusal refusal_of_shape(const ggml_tensor& node, int32_t serve_rows,
                                       TypeTraits type_traits);

/// Layer of an attention node, from the name of the cache that K is a view of; -1 where it has
/// none.
int32_t layer_of(const ggml_tensor& node);

/// Whether K and V are read into f32 first: quantised ones, or two types.
bool dequantises(const ggml_tensor& node);

/// View of one stream of a tensor whose dimension `token_axis` counts tokens and the other one of
/// 1, 2 heads; from token `first` on.
tsp_tensor_t view_of(const ggml_tensor& tensor, int token_axis, int64_t stream, int64_t first);

/// Narrows a view of a cache to the cells of a group.
void pick_cells(tsp_tensor_t& view, const RowGroup& rows);

/// Reads the first `cells` cells of one stream of K and V into f32 [2, n_kv, heads, dim] at `out`.
void dequantise(const ggml_tensor& node, int64_t stream, int64_t cells, TypeTraits type_traits,
                float* out);
/// K or V (`half` 0 or 1) as dequantise() left it.
tsp_tensor_t dequantised_view(const ggml_tensor& node, int half, float* data);

}  // namespace tsp::ggml_adapter
