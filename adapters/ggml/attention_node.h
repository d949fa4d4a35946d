// SPDX-License-Identifier: MIT
// Serves GGML_OP_FLASH_ATTN_EXT nodes with tokensparse. Whoever sees the nodes of a graph (an eval
// callback, a backend) asks check() and then either calls serve() or leaves the node to ggml.
// Of ggml it reads structs alone and calls no function by name, so that it works in a plugin too.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "adapters/ggml/attention_memory.h"
#include "adapters/ggml/attention_shape.h"
#include "adapters/ggml/attention_stats.h"
#include "adapters/ggml/row_groups.h"
#include "adapters/ggml/setting.h"
#include "adapters/ggml/sparse_policy.h"
#include "ggml.h"
#include "tokensparse/tokensparse.h"

namespace tsp::ggml_adapter {

/// Query rows from which attention is ours: packing K and V pays off over many rows only.
inline constexpr int32_t kServedRows = 64;

struct Options {
  Setting setting = exact();
  int32_t num_layers = 0;  // of the model; 0 = not known yet
  int32_t serve_rows = kServedRows;
  /// Whether everything before a node is computed when check() sees it (a backend) or only the
  /// inputs of the graph are there (a callback).
  bool inputs_computed = false;
  TypeTraits type_traits = nullptr;
  size_t max_bytes = SIZE_MAX;  // of memory that a server may hold
  /// Sees each call of a layer (-1 = unknown) before it is served; its rows are the last of `keys`.
  std::function<tsp_status_t(int32_t layer, const tsp_prefill_params_t& call, int32_t keys)>
      on_call;
  /// Fills in which tokens a sparse layer attends to, instead of the vote of its last queries: sets
  /// of the setting's share, with memory for them; kept = keys is all.
  std::function<tsp_status_t(int32_t layer, int32_t rows, int32_t keys, tsp_index_sets_t& sets)>
      choose;
};

/// Whether a context has the arithmetic of TSP_PRECISION_BF16.
bool has_bf16(tsp_context_t* ctx);

class AttentionServer {
 public:
  /// `ctx` outlives the server, which uses it from the thread that calls serve().
  AttentionServer(tsp_context_t* ctx, Options options);

  /// Whether serve() would take this node, going by shapes, types and strides: no data is read.
  [[nodiscard]] Refusal check_shape(const ggml_tensor& node) const {
    return refusal_of_shape(node, options_.serve_rows, options_.type_traits);
  }
  /// check_shape(), then the mask, whose data must be there; counts a refusal. q, k and v may still
  /// be waiting to be computed. Memory for serve() is allocated here.
  [[nodiscard]] Refusal check(const ggml_tensor& node);
  /// Computes into node.data a node that check() returned kNone for. All tensors in host memory.
  /// TSP_OK, or tsp_last_error() says what happened.
  [[nodiscard]] tsp_status_t serve(ggml_tensor& node);

  /// Nodes from here to the next call are of one graph: a mask that several share is read once.
  void begin_graph() { mask_ = {true, nullptr, 0, {}}; }

  /// For the nodes to come: of their rows only the last `rows` are read behind the model's last
  /// layer (the tokens whose logits are wanted; row by row from there on), which then attends for
  /// them alone and leaves zeros in the others, which the statistics count as if they were there.
  /// Holds for one sequence a node, in a layer that the setting does not name, once num_layers is
  /// known. -1, as at first: all are.
  void set_rows_read(int32_t rows) { rows_read_ = rows; }

  /// For the nodes to come: what was not known, or was found out, after the server was made.
  SparsePolicy& policy() { return policy_; }

  /// For the nodes to come.
  void set_setting(const Setting& setting, int32_t num_layers) {
    options_.setting = setting;
    policy_ = SparsePolicy(setting, num_layers);
  }

  /// A tsp_precision_t, for the nodes to come.
  void set_precision(int32_t precision) { options_.setting.op.precision = precision; }

  /// By layer; nodes without a layer are in `no_layer`.
  const std::vector<LayerStats>& layers() const { return layers_; }
  const LayerStats& no_layer() const { return no_layer_; }
  void reset_stats();
  /// Of memory that the server holds between nodes.
  size_t bytes() const { return memory_.bytes(); }

 private:
  /// Rows of one sequence, served in one call.
  struct Piece {
    int64_t stream = 0;
    RowGroup rows;
    SparsePolicy::Verdict verdict = SparsePolicy::Verdict::kExact;
    std::array<int32_t, 2> q_offsets{}, k_offsets{};  // a batch of this one
  };

  const std::vector<RowGroup>& groups_of(const ggml_tensor& mask, int64_t stream, bool is_input);
  Refusal judge(const ggml_tensor& node, int32_t layer);
  Refusal find_pieces(const ggml_tensor& node, int32_t layer);
  void leave_unread_rows(int32_t layer);
  Refusal reserve_for(const ggml_tensor& node);
  void dequantise_stream(const ggml_tensor& node, int64_t stream);
  LayerStats& stats_of(int32_t layer);
  tsp_prefill_params_t params_of(const ggml_tensor& node, const Piece& piece) const;
  tsp_status_t let_choose(tsp_prefill_params_t& params, int32_t rows, int32_t keys);
  tsp_status_t serve_piece(const ggml_tensor& node, const Piece& piece, LayerStats& stats);

  tsp_context_t* ctx_;
  Options options_;
  SparsePolicy policy_;
  std::vector<LayerStats> layers_;
  LayerStats no_layer_;
  AttentionMemory memory_;
  struct {
    bool of_graph = false;  // whether begin_graph() says when masks change
    const void* data = nullptr;
    int64_t rows = 0;
    std::map<int64_t, std::vector<RowGroup>> groups;  // by stream
  } mask_;                                            // that was read last
  const ggml_tensor* checked_ = nullptr;              // the node that check() saw last ...
  int32_t checked_layer_ = -1;                        // ... its layer ...
  std::vector<Piece> pieces_;                         // ... its sequences ...
  LayerStats unread_;  // ... and rows before theirs that nobody reads
  int32_t rows_read_ = -1;
};

}  // namespace tsp::ggml_adapter
