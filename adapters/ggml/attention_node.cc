// SPDX-License-Identifier: MIT
#include "adapters/ggml/attention_node.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "adapters/ggml/pair_count.h"

namespace tsp::ggml_adapter {

using Verdict = SparsePolicy::Verdict;

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
    : ctx_(ctx),
      options_(std::move(options)),
      policy_(options_.setting, options_.num_layers),
      memory_(options_.max_bytes) {}

Refusal AttentionServer::check(const ggml_tensor& node) {
  if (node.op != GGML_OP_FLASH_ATTN_EXT) return Refusal::kNotAttention;
  const int32_t layer = layer_of(node);
  const Refusal refusal = judge(node, layer);
  checked_ = refusal == Refusal::kNone ? &node : nullptr;
  checked_layer_ = layer;
  LayerStats& stats = stats_of(layer);
  stats.named = policy_.names(layer);
  if (refusal != Refusal::kNone) ++stats.refused[static_cast<size_t>(refusal)];
  return refusal;
}

Refusal AttentionServer::judge(const ggml_tensor& node, int32_t layer) {
  Refusal refusal = check_shape(node);
  if (refusal == Refusal::kNone) refusal = find_pieces(node, layer);
  if (refusal == Refusal::kNone) leave_unread_rows(layer);
  if (refusal == Refusal::kNone) refusal = reserve_for(node);
  return refusal;
}

Refusal AttentionServer::find_pieces(const ggml_tensor& node, int32_t layer) {
  // A leaf is an input, whose data is there before the graph runs.
  ggml_tensor mask = *node.src[kMask];
  const bool ready = options_.inputs_computed || mask.op == GGML_OP_NONE;
  if (!ready || mask.data == nullptr) return Refusal::kMaskNotReady;
  mask.ne[1] = node.src[kQ]->ne[1];  // older masks are padded with rows that mean nothing
  pieces_.clear();
  for (int64_t stream = 0; stream < mask.ne[3]; ++stream) {
    const auto& groups = groups_of(mask, stream, node.src[kMask]->op == GGML_OP_NONE);
    if (groups.empty()) return Refusal::kMask;
    for (const RowGroup& rows : groups) {
      const int32_t num_rows = rows.num_rows, k_len = rows.k_len;
      const Verdict verdict = policy_.verdict(layer, num_rows, k_len);
      pieces_.push_back({stream, rows, verdict, {0, num_rows}, {0, k_len}});
    }
  }
  return Refusal::kNone;
}

/// read_row_groups(), once a graph where the mask is an input, which stays as it is.
const std::vector<RowGroup>& AttentionServer::groups_of(const ggml_tensor& mask, int64_t stream,
                                                        bool is_input) {
  const bool known = mask_.of_graph && is_input && mask_.data == mask.data &&
                     mask_.rows == mask.ne[1] && mask_.groups.contains(stream);
  if (known) return mask_.groups[stream];
  if (mask_.data != mask.data || mask_.rows != mask.ne[1]) mask_.groups.clear();
  mask_.data = mask.data;
  mask_.rows = mask.ne[1];
  return mask_.groups[stream] = read_row_groups(mask, stream);
}

void AttentionServer::leave_unread_rows(int32_t layer) {
  unread_ = {};
  const bool last = options_.num_layers > 0 && layer == options_.num_layers - 1;
  if (!last || rows_read_ < 0 || pieces_.size() != 1) return;
  Piece& piece = pieces_.front();
  const int32_t rows = piece.rows.num_rows, keys = piece.rows.k_len;
  if (piece.verdict != Verdict::kExact || rows_read_ >= rows) return;
  unread_.served_rows = rows - rows_read_;
  unread_.pairs = unread_.dense_pairs = dense_pairs(rows, keys) - dense_pairs(rows_read_, keys);
  piece.rows.first_row += rows - rows_read_;
  piece.rows.num_rows = rows_read_;
  piece.q_offsets[1] = rows_read_;
  if (rows_read_ > 0) return;
  unread_.keys = unread_.kept = keys;
  pieces_.clear();
}

Refusal AttentionServer::reserve_for(const ggml_tensor& node) {
  if (dequantises(node)) {
    const ggml_tensor& k = *node.src[kK];
    const auto elements = static_cast<size_t>(k.ne[0] * k.ne[1] * k.ne[2]);
    if (!memory_.reserve(AttentionMemory::kDequantised, 2 * elements * sizeof(float))) {
      return Refusal::kMemory;
    }
  }
  size_t most = 0, indices = 0;
  for (const Piece& piece : pieces_) {
    const tsp_prefill_params_t params = params_of(node, piece);
    size_t bytes = 0;
    if (tsp_prefill_workspace(ctx_, &params, &bytes) != TSP_OK) return Refusal::kLibrary;
    most = std::max(most, bytes);
    if (piece.verdict != Verdict::kSparse) continue;
    const auto heads = static_cast<size_t>(params.q.heads);
    indices = std::max(indices, heads * static_cast<size_t>(piece.rows.k_len) * sizeof(int32_t));
  }
  const bool fits = memory_.reserve(AttentionMemory::kWorkspace, most) &&
                    memory_.reserve(AttentionMemory::kIndices, indices);
  return fits ? Refusal::kNone : Refusal::kMemory;
}

tsp_status_t AttentionServer::serve(ggml_tensor& node) {
  const auto start = std::chrono::steady_clock::now();
  if (checked_ != &node && check(node) != Refusal::kNone) return TSP_UNSUPPORTED;
  checked_ = nullptr;
  LayerStats served = unread_;
  std::memset(node.data, 0, static_cast<size_t>(unread_.served_rows) * node.nb[2]);
  int64_t dequantised = -1;
  for (const Piece& piece : pieces_) {
    if (dequantises(node) && dequantised != piece.stream) {
      dequantise_stream(node, piece.stream);
      dequantised = piece.stream;
    }
    const tsp_status_t status = serve_piece(node, piece, served);
    if (status != TSP_OK) return status;
  }
  // A node counts once, however many sequences it holds.
  served.served = 1;
  served.few_keys = std::min<int64_t>(served.few_keys, 1);
  served.few_rows = std::min<int64_t>(served.few_rows, 1);
  served.kept_all = std::min<int64_t>(served.kept_all, 1);
  served.sparse = served.pairs < served.dense_pairs;
  served.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  stats_of(checked_layer_).add(served);
  return TSP_OK;
}

tsp_status_t AttentionServer::serve_piece(const ggml_tensor& node, const Piece& piece,
                                          LayerStats& stats) {
  const int32_t rows = piece.rows.num_rows, keys = piece.rows.k_len;
  const bool sparse = piece.verdict == Verdict::kSparse;
  int32_t kept = keys;
  int64_t tally[2] = {};  // kept tokens, and the pairs of all heads
  tsp_prefill_params_t params = params_of(node, piece);
  params.workspace = memory_.data(AttentionMemory::kWorkspace);
  params.workspace_bytes = memory_.bytes(AttentionMemory::kWorkspace);
  params.selected.kept = &kept;
  params.tally = tally;
  if (sparse)
    params.selected.indices = static_cast<int32_t*>(memory_.data(AttentionMemory::kIndices));
  tsp_status_t status = TSP_OK;
  if (options_.on_call) status = options_.on_call(checked_layer_, params, keys);
  if (status == TSP_OK && sparse && options_.choose) status = let_choose(params, rows, keys);
  if (status == TSP_OK) status = tsp_prefill(ctx_, &params);
  if (status != TSP_OK) return status;
  stats.served_rows += rows;
  stats.keys += keys;
  stats.kept += kept;
  const bool prompt = rows >= options_.serve_rows;  // else another sequence's decoding
  stats.few_keys += prompt && piece.verdict == Verdict::kFewKeys;
  stats.few_rows += prompt && piece.verdict == Verdict::kFewRows;
  const double pairs = static_cast<double>(tally[1]) / static_cast<double>(params.q.heads);
  const double dense = dense_pairs(rows, keys);
  stats.kept_all += sparse && pairs >= dense;
  stats.dense_pairs += dense;
  stats.pairs += pairs;
  return TSP_OK;
}

tsp_status_t AttentionServer::let_choose(tsp_prefill_params_t& params, int32_t rows, int32_t keys) {
  const tsp_status_t status = options_.choose(checked_layer_, rows, keys, params.selected);
  if (*params.selected.kept < keys) {
    params.given = params.selected;
  } else {
    params.coverage = params.keep = 0;
  }
  return status;
}

void AttentionServer::dequantise_stream(const ggml_tensor& node, int64_t stream) {
  int64_t cells = 0;  // up to the last one that a row sees
  for (const Piece& piece : pieces_) {
    const RowGroup& rows = piece.rows;
    if (piece.stream != stream) continue;
    const int64_t end = rows.cells.empty()
                            ? rows.first_cell + rows.k_len
                            : *std::max_element(rows.cells.begin(), rows.cells.end()) + 1;
    cells = std::max(cells, end);
  }
  dequantise(node, stream, cells, options_.type_traits,
             static_cast<float*>(memory_.data(AttentionMemory::kDequantised)));
}

void AttentionServer::reset_stats() {
  layers_.clear();
  no_layer_ = {};
}

LayerStats& AttentionServer::stats_of(int32_t layer) {
  if (layer < 0 || layer >= kMaxLayers) return no_layer_;  // a name is only a name
  if (static_cast<size_t>(layer) >= layers_.size()) layers_.resize(static_cast<size_t>(layer) + 1);
  return layers_[static_cast<size_t>(layer)];
}

tsp_prefill_params_t AttentionServer::params_of(const ggml_tensor& node, const Piece& piece) const {
  tsp_prefill_params_t params = options_.setting.op;
  params.coverage = options_.setting.coverage_of(piece.rows.k_len);
  if (piece.verdict != Verdict::kSparse) {
    params.coverage = params.keep = 0;
    params.pattern = {};
  }
  // Fewer keys than are built in: the user wants it where the library expects no gain, too.
  const bool pays_only = options_.setting.min_keys >= Setting().min_keys;
  params.when = pays_only ? TSP_WHEN_PAYS : TSP_WHEN_ALWAYS;
  params.scale = param_of(node, kScale);
  params.q = view_of(*node.src[kQ], 1, piece.stream, piece.rows.first_row);
  params.out = view_of(node, 2, piece.stream, piece.rows.first_row);
  params.q.tokens = params.out.tokens = piece.rows.num_rows;
  if (dequantises(node)) {
    auto* data = static_cast<float*>(memory_.data(AttentionMemory::kDequantised));
    params.k = dequantised_view(node, 0, data);
    params.v = dequantised_view(node, 1, data);
  } else {
    params.k = view_of(*node.src[kK], 1, piece.stream, 0);
    params.v = view_of(*node.src[kV], 1, piece.stream, 0);
  }
  pick_cells(params.k, piece.rows);
  pick_cells(params.v, piece.rows);
  params.lse = {};
  params.selected = {};
  params.selected.num_sets =
      static_cast<int32_t>(params.share == TSP_SHARE_HEAD    ? params.q.heads
                           : params.share == TSP_SHARE_LAYER ? 1
                                                             : params.k.heads);
  params.selected.set_stride = piece.rows.k_len;
  params.selected.seq_stride = params.selected.num_sets * params.selected.set_stride;
  params.batch = {};
  if (params.k.block_table != nullptr) {  // a table goes with a list of sequences
    params.batch = {piece.q_offsets.data(), piece.k_offsets.data(), 1, 0};
  }
  params.workspace = nullptr;
  params.workspace_bytes = 0;
  return params;
}

}  // namespace tsp::ggml_adapter
