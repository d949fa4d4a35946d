// SPDX-License-Identifier: MIT
// Serves GGML_OP_FLASH_ATTN_EXT nodes with tokensparse. Whoever sees the nodes of a graph (an eval
// callback, a backend) asks check() and then either calls serve() or leaves the node to ggml.
// Of ggml it reads structs alone and calls no function by name, so that it works in a plugin too.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "adapters/ggml/row_groups.h"
#include "ggml.h"
#include "tokensparse/tokensparse.h"

namespace tsp::ggml_adapter {

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

/// Where choosing tokens does not pay, a sparse layer attends exactly. Keeping 95 % of the tokens
/// (D 64, 14/2 heads, bf16, 2 cores AMD EPYC Zen 5, 2026-11-25) is as fast as attending to all from
/// 4,096 keys up and 6 % slower at 2,048; in chunks, which all pay for their own scores, it is 2 %
/// slower with 1,024 query rows, 8 windows of 128, and 10 % slower with 512.
constexpr int32_t kMinSparseKeys = 4096;
constexpr int32_t kMinSparseWindows = 8;

struct Options {
  /// Coverage, share, ... of the layers in `sparse_layers`; tensors and workspace are not read. The
  /// other layers are attended exactly.
  tsp_prefill_params_t op;
  /// By layer index; a layer beyond the end is not sparse.
  std::vector<bool> sparse_layers;
  /// Query rows below which a node is ggml's: packing K and V pays off over many rows only.
  int32_t min_rows = 64;
  /// Keys below which a sparse layer attends exactly; so it does below kMinSparseWindows times
  /// op.window query rows. 0: neither rule.
  int32_t min_keys = kMinSparseKeys;
  /// Whether everything before a node is computed when check() sees it (a backend) or only the
  /// inputs of the graph are there (a callback).
  bool inputs_computed = false;
  /// ggml_get_type_traits, to read quantised caches with; null leaves those nodes to ggml.
  const ggml_type_traits* (*type_traits)(ggml_type) = nullptr;
  size_t max_bytes = SIZE_MAX;  // of memory that a server may hold
};

/// What happened in one layer since reset_stats().
struct LayerStats {
  int64_t served = 0;       // nodes
  int64_t served_rows = 0;  // query rows in them
  int64_t sparse = 0;       // of `served`, those that left tokens out ...
  int64_t too_short = 0;    // ... and those of a sparse layer with a prompt too short to choose
  int64_t keys = 0;         // sum over served nodes of Tk ...
  int64_t kept = 0;         // ... and of the tokens that were kept
  double seconds = 0;       // in serve()
  std::array<int64_t, static_cast<size_t>(Refusal::kCount)> refused{};
};

/// Layer of an attention node, from the name of the cache that K is a view of; -1 where it has
/// none.
int32_t layer_of(const ggml_tensor& node);

/// Whether a node can be served, going by shapes, types and strides: no data is read.
[[nodiscard]] Refusal refusal_of_shape(const ggml_tensor& node, const Options& options);

/// Whether a context has the arithmetic of TSP_PRECISION_BF16.
bool has_bf16(tsp_context_t* ctx);

class AttentionServer {
 public:
  /// `ctx` outlives the server, which uses it from the thread that calls serve().
  AttentionServer(tsp_context_t* ctx, Options options);

  /// Whether serve() would take this node, going by shapes, types and strides: no data is read.
  [[nodiscard]] Refusal check_shape(const ggml_tensor& node) const {
    return refusal_of_shape(node, options_);
  }
  /// check_shape(), then the mask, whose data must be there; counts a refusal. q, k and v may still
  /// be waiting to be computed. Memory for serve() is allocated here.
  [[nodiscard]] Refusal check(const ggml_tensor& node);
  /// Computes into node.data a node that check() returned kNone for. All tensors in host memory.
  /// TSP_OK, or tsp_last_error() says what happened.
  [[nodiscard]] tsp_status_t serve(ggml_tensor& node);

  /// By layer; nodes without a layer are in `no_layer`.
  const std::vector<LayerStats>& layers() const { return layers_; }
  const LayerStats& no_layer() const { return no_layer_; }
  void reset_stats();
  /// Of memory that the server holds between nodes.
  size_t bytes() const { return workspace_.bytes + dequantised_.bytes; }

 private:
  /// Rows of one sequence, served in one call.
  struct Piece {
    int64_t stream = 0;
    RowGroup rows;
    std::array<int32_t, 2> q_offsets{}, k_offsets{};  // a batch of this one
  };
  struct Free {
    void operator()(void* memory) const;
  };
  struct Memory {
    std::unique_ptr<void, Free> data;
    size_t bytes = 0;
  };

  Refusal judge(const ggml_tensor& node);
  Refusal find_pieces(const ggml_tensor& node);
  Refusal reserve_for(const ggml_tensor& node);
  bool reserve(Memory& memory, size_t bytes);
  bool dequantises(const ggml_tensor& node) const;
  void dequantise(const ggml_tensor& node, int64_t stream);
  LayerStats& stats_of(const ggml_tensor& node);
  bool is_sparse_layer(const ggml_tensor& node) const;
  bool is_prompt(const RowGroup& rows) const;
  bool is_long_enough(const RowGroup& rows) const;
  tsp_prefill_params_t params_of(const ggml_tensor& node, const Piece& piece) const;

  tsp_context_t* ctx_;
  Options options_;
  std::vector<LayerStats> layers_;
  LayerStats no_layer_;
  Memory workspace_;
  Memory dequantised_;                    // K and V of one stream, f32 [n_kv, heads, dim] each
  const ggml_tensor* checked_ = nullptr;  // the node that check() saw last ...
  std::vector<Piece> pieces_;             // ... and its sequences
};

}  // namespace tsp::ggml_adapter
