// SPDX-License-Identifier: MIT
#include "adapters/ggml/attention_node.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

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

/// Whether a view can say where the rows are; those of quantised types are whole blocks.
bool strides_fit(const ggml_tensor& tensor) {
  const int32_t dtype = dtype_of(tensor.type);
  if (dtype < 0) return true;
  const size_t size = bytes_of(dtype);
  return tensor.nb[0] == size && tensor.nb[1] % size == 0 && tensor.nb[2] % size == 0;
}

/// View of one stream of a tensor whose dimension `token_axis` counts tokens and the other one of
/// 1, 2 heads; from token `first` on.
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

/// Narrows a view of a cache to the cells of a group.
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

bool has_bf16(tsp_context_t* ctx) {
  tsp_attend_params_t params;
  tsp_attend_params_init(&params, sizeof params);
  params.precision = TSP_PRECISION_BF16;
  tsp_tensor_t row = {};
  row.dtype = TSP_F32;
  row.tokens = row.heads = row.dim_stride = 1;
  row.dim = row.token_stride = row.head_stride = 64;
  params.q = params.k = params.v = params.out = row;
  size_t bytes = 0;
  return tsp_attend_workspace(ctx, &params, &bytes) == TSP_OK;
}

AttentionServer::AttentionServer(tsp_context_t* ctx, Options options)
    : ctx_(ctx), options_(std::move(options)) {}

void AttentionServer::Free::operator()(void* memory) const { std::free(memory); }

Refusal refusal_of_shape(const ggml_tensor& node, const Options& options) {
  if (node.op != GGML_OP_FLASH_ATTN_EXT) return Refusal::kNotAttention;
  const ggml_tensor *q = node.src[kQ], *k = node.src[kK], *v = node.src[kV],
                    *mask = node.src[kMask];
  if (q->ne[1] < options.min_rows) return Refusal::kShortChunk;
  if (dtype_of(k->type) < 0 || v->type != k->type) {
    const auto readable = [&](ggml_type type) {
      return options.type_traits != nullptr && options.type_traits(type)->to_float != nullptr;
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

Refusal AttentionServer::check(const ggml_tensor& node) {
  const Refusal refusal = judge(node);
  checked_ = refusal == Refusal::kNone ? &node : nullptr;
  if (refusal != Refusal::kNone && refusal != Refusal::kNotAttention) {
    ++stats_of(node).refused[static_cast<size_t>(refusal)];
  }
  return refusal;
}

Refusal AttentionServer::judge(const ggml_tensor& node) {
  Refusal refusal = check_shape(node);
  if (refusal == Refusal::kNone) refusal = find_pieces(node);
  if (refusal == Refusal::kNone) refusal = reserve_for(node);
  return refusal;
}

Refusal AttentionServer::find_pieces(const ggml_tensor& node) {
  // A leaf is an input, whose data is there before the graph runs.
  ggml_tensor mask = *node.src[kMask];
  const bool ready = options_.inputs_computed || mask.op == GGML_OP_NONE;
  if (!ready || mask.data == nullptr) return Refusal::kMaskNotReady;
  mask.ne[1] = node.src[kQ]->ne[1];  // older masks are padded with rows that mean nothing
  pieces_.clear();
  for (int64_t stream = 0; stream < mask.ne[3]; ++stream) {
    std::vector<RowGroup> groups = read_row_groups(mask, stream);
    if (groups.empty()) return Refusal::kMask;
    for (RowGroup& rows : groups) {
      const int32_t num_rows = rows.num_rows, k_len = rows.k_len;
      pieces_.push_back({stream, std::move(rows), {0, num_rows}, {0, k_len}});
    }
  }
  return Refusal::kNone;
}

Refusal AttentionServer::reserve_for(const ggml_tensor& node) {
  if (dequantises(node)) {
    const ggml_tensor& k = *node.src[kK];
    const auto elements = static_cast<size_t>(k.ne[0] * k.ne[1] * k.ne[2]);
    if (!reserve(dequantised_, 2 * elements * sizeof(float))) return Refusal::kMemory;
  }
  size_t most = 0;
  for (const Piece& piece : pieces_) {
    const tsp_prefill_params_t params = params_of(node, piece);
    size_t bytes = 0;
    if (tsp_prefill_workspace(ctx_, &params, &bytes) != TSP_OK) return Refusal::kLibrary;
    most = std::max(most, bytes);
  }
  return reserve(workspace_, most) ? Refusal::kNone : Refusal::kMemory;
}

tsp_status_t AttentionServer::serve(ggml_tensor& node) {
  const auto start = std::chrono::steady_clock::now();
  if (checked_ != &node && check(node) != Refusal::kNone) return TSP_UNSUPPORTED;
  checked_ = nullptr;
  int64_t rows = 0, keys = 0, kept_keys = 0, dequantised = -1;
  bool too_short = false;
  for (const Piece& piece : pieces_) {
    if (dequantises(node) && dequantised != piece.stream) {
      dequantise(node, piece.stream);
      dequantised = piece.stream;
    }
    int32_t kept = piece.rows.k_len;
    tsp_prefill_params_t params = params_of(node, piece);
    params.selected.kept = &kept;
    params.workspace = workspace_.data.get();
    params.workspace_bytes = workspace_.bytes;
    const tsp_status_t status = tsp_prefill(ctx_, &params);
    if (status != TSP_OK) return status;
    rows += piece.rows.num_rows;
    keys += piece.rows.k_len;
    kept_keys += kept;
    too_short = too_short ||
                (is_sparse_layer(node) && is_prompt(piece.rows) && !is_long_enough(piece.rows));
  }
  LayerStats& stats = stats_of(node);
  ++stats.served;
  stats.served_rows += rows;
  stats.sparse += kept_keys < keys;
  stats.too_short += too_short;
  stats.keys += keys;
  stats.kept += kept_keys;
  stats.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return TSP_OK;
}

bool AttentionServer::dequantises(const ggml_tensor& node) const {
  return dtype_of(node.src[kK]->type) < 0 || node.src[kK]->type != node.src[kV]->type;
}

void AttentionServer::dequantise(const ggml_tensor& node, int64_t stream) {
  int64_t cells = 0;  // up to the last one that a row sees
  for (const Piece& piece : pieces_) {
    const RowGroup& rows = piece.rows;
    if (piece.stream != stream) continue;
    const int64_t end = rows.cells.empty()
                            ? rows.first_cell + rows.k_len
                            : *std::max_element(rows.cells.begin(), rows.cells.end()) + 1;
    cells = std::max(cells, end);
  }
  auto* out = static_cast<float*>(dequantised_.data.get());
  for (const ggml_tensor* cache : {node.src[kK], node.src[kV]}) {
    const ggml_to_float_t to_float = options_.type_traits(cache->type)->to_float;
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

bool AttentionServer::is_sparse_layer(const ggml_tensor& node) const {
  const int32_t layer = layer_of(node);
  const auto index = static_cast<size_t>(layer);
  return (options_.op.coverage > 0 || options_.op.keep > 0) && layer >= 0 &&
         index < options_.sparse_layers.size() && options_.sparse_layers[index];
}

/// Few rows beside a prompt are another sequence's decoding, which is exact.
bool AttentionServer::is_prompt(const RowGroup& rows) const {
  return rows.num_rows >= options_.min_rows;
}

bool AttentionServer::is_long_enough(const RowGroup& rows) const {
  return options_.min_keys == 0 ||
         (rows.k_len >= options_.min_keys &&
          rows.num_rows >= int64_t{kMinSparseWindows} * options_.op.window);
}

tsp_prefill_params_t AttentionServer::params_of(const ggml_tensor& node, const Piece& piece) const {
  tsp_prefill_params_t params = options_.op;
  if (!is_sparse_layer(node) || !is_prompt(piece.rows) || !is_long_enough(piece.rows)) {
    params.coverage = 0;
    params.keep = 0;
  }
  params.scale = param_of(node, kScale);
  params.q = view_of(*node.src[kQ], 1, piece.stream, piece.rows.first_row);
  params.out = view_of(node, 2, piece.stream, piece.rows.first_row);
  params.q.tokens = params.out.tokens = piece.rows.num_rows;
  if (dequantises(node)) {
    ggml_tensor k = *node.src[kK];
    k.type = GGML_TYPE_F32;
    k.data = dequantised_.data.get();
    k.nb[2] = static_cast<size_t>(k.ne[0]) * sizeof(float);
    k.nb[1] = static_cast<size_t>(k.ne[2]) * k.nb[2];
    params.k = params.v = view_of(k, 1, 0, 0);
    params.v.data = static_cast<char*>(k.data) + static_cast<size_t>(k.ne[1]) * k.nb[1];
  } else {
    params.k = view_of(*node.src[kK], 1, piece.stream, 0);
    params.v = view_of(*node.src[kV], 1, piece.stream, 0);
  }
  pick_cells(params.k, piece.rows);
  pick_cells(params.v, piece.rows);
  params.lse = {};
  params.selected = {};
  params.batch = {};
  if (params.k.block_table != nullptr) {  // a table goes with a list of sequences
    params.batch = {piece.q_offsets.data(), piece.k_offsets.data(), 1, 0};
  }
  params.workspace = nullptr;
  params.workspace_bytes = 0;
  return params;
}

bool AttentionServer::reserve(Memory& memory, size_t bytes) {
  if (bytes <= memory.bytes) return true;
  constexpr size_t kAlign = 64;
  const auto round_up = [](size_t size) { return (size + kAlign - 1) / kAlign * kAlign; };
  const size_t others = this->bytes() - memory.bytes;
  const size_t room = options_.max_bytes > others ? options_.max_bytes - others : 0;
  // Chunks see more keys from one to the next: some spare room, where the limit leaves it.
  const size_t rounded = std::min(round_up(bytes + bytes / 4), std::max(room, round_up(bytes)));
  if (rounded > room) return false;
  memory = {};
  memory.data.reset(std::aligned_alloc(kAlign, round_up(rounded)));
  if (memory.data == nullptr) return false;
  memory.bytes = round_up(rounded);
  return true;
}

}  // namespace tsp::ggml_adapter
