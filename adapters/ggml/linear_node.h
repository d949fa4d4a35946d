// SPDX-License-Identifier: MIT
// Serves GGML_OP_MUL_MAT nodes of a prompt (many rows times a weight) with an engine of ours, in
// the way that attention_node.h serves attention: check(), then serve() or leave the node to ggml.
// The weights are brought into the engine's form slice by slice, in a buffer of bounded size, or
// kept in it as far as LinearOptions::keep_bytes allows. Decoding (few rows) stays ggml's.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "adapters/ggml/gated_layers.h"
#include "adapters/ggml/linear_engine.h"
#include "adapters/ggml/norm_node.h"
#include "ggml.h"
#include "tokensparse/context.h"

namespace tsp::ggml_adapter {

/// Why a matrix product is ggml's.
enum class LinearRefusal {
  kNone,
  kNotLinear,   // another operation; not counted
  kFewRows,     // decoding, or the tail of a prompt
  kExperts,     // GGML_OP_MUL_MAT_ID
  kNotWeight,   // both sides are computed
  kWeightType,  // f32, a type without a way to f32; for kInt8 any that is not quantised
  kRepacked,    // ggml holds the weight in a layout of its own, or split over devices
  kBatched,
  kLayout,
  kLibrary,
  kCount,
};
/// "few rows" and so on: completes "left to ggml: ...".
const char* refusal_text(LinearRefusal refusal);

enum class LinearKind {
  kOneDnn,
  kInt8,  // 8-bit integers, own code; for weights that are quantised already
  kBf16,  // own code
};

enum class LinearPrecision {  // of oneDNN's
  kAuto,                      // bf16 where the processor multiplies it, f32 elsewhere
  kBf16,                      // weights and activations rounded to bf16, summed in f32
  kF32,
};

struct LinearOptions {
  LinearKind kind = LinearKind::kOneDnn;
  int32_t threads = 1;  // those of ggml: its OpenMP team is then the one that oneDNN computes on
  /// The threads that kInt8 and kBf16 compute on; null for the calling one alone.
  tsp_parallel_fn parallel = nullptr;
  void* parallel_user = nullptr;
  int32_t min_rows = 64;
  LinearPrecision precision = LinearPrecision::kAuto;
  /// Memory for weights that stay in the engine's form: 2 bytes an element in bf16, 4 in f32, 1.06
  /// in int8, first come first kept. It saves making it once a chunk. Weights outlive the server.
  size_t keep_bytes = 0;
  /// Products of the same activations, as of q, k and v, bring them into the engine's form once.
  /// The caller then says where a graph begins: LinearServer::begin_graph(). Of a gated layer the
  /// two products are then kept back, until what reads them comes: see saw().
  bool share_inputs = false;
  /// Path of oneDNN's shared library; empty for the one that OneDnn::open() finds.
  std::string library;
  /// ggml_get_type_traits: handed in, so that a plugin can pass its host's.
  const ggml_type_traits* (*type_traits)(ggml_type) = nullptr;
};

/// What happened since reset_stats().
struct LinearStats {
  int64_t served = 0;       // nodes
  int64_t served_rows = 0;  // rows in them
  double gflop = 0;         // 2 m n k of them
  double seconds = 0;       // in serve() ...
  double weight_s = 0;      // ... of which for bringing weights into form
  std::array<int64_t, static_cast<size_t>(LinearRefusal::kCount)> refused{};
};

/// Whether a LinearServer with these options would take this node, going by shapes, types and
/// strides: for whoever must say so before there is a server.
LinearRefusal refusal_of_shape(const ggml_tensor& node, const LinearOptions& options);

class LinearServer {
 public:
  /// Null where the engine is missing or of no use, with the reason in `why`: one clause, no full
  /// stop.
  static std::unique_ptr<LinearServer> create(const LinearOptions& options, std::string& why);

  /// With an engine of the caller's, whatever the kind.
  static std::unique_ptr<LinearServer> create(std::unique_ptr<LinearEngine> engine,
                                              const LinearOptions& options);

  /// Every node of a graph, in its order, before its check(). Where that is done for a whole graph,
  /// ended by end_graph(), and share_inputs is set, later graphs compute SwiGLU of two products
  /// that nothing else reads as one (GGML_OP_GLU, served too), into the activations of the product
  /// that reads it: results of the three nodes are then not written. RMS norms between products are
  /// served as well, where the engine does (NormServer). False where a product that was
  /// kept back could not be computed.
  [[nodiscard]] bool saw(const ggml_tensor& node);
  /// False where the graph's last nodes still wait and were not computed.
  [[nodiscard]] bool end_graph() {
    layers_.end_graph();
    return waiting_.empty() && norms_.idle();
  }

  /// refusal_of_shape(), and the memory and code that serve() needs, made here; counts a refusal.
  /// The activations may still be waiting to be computed.
  [[nodiscard]] LinearRefusal check(const ggml_tensor& node);
  /// Computes into node.data a node that check() returned kNone for. All tensors in host memory.
  /// False where the library failed.
  [[nodiscard]] bool serve(ggml_tensor& node);

  /// Tensors that were seen may hold other values from here on.
  void begin_graph();

  void set_threads(int32_t threads) {
    options_.threads = threads;
    engine_->set_threads(threads);
  }
  const LinearStats& stats() const { return stats_; }
  void reset_stats() { stats_ = {}; }
  bool rounds() const { return engine_->rounds(); }
  bool pays_off() const { return engine_->pays_off(); }
  std::string description() const { return engine_->description(); }

  /// Memory held, without kept_bytes(): at most max_buffer_bytes() and the library's own scratch,
  /// whatever the prompt's length and the model.
  size_t buffer_bytes() const;
  size_t kept_bytes() const { return kept_bytes_; }
  static constexpr size_t max_buffer_bytes() { return kWeightBytes + 2 * kActivationBytes; }

 private:
  // A slice of a weight, at most; one row of a weight if that is more.
  static constexpr size_t kWeightBytes = size_t{16} << 20;
  // Activations in the engine's form, at most; kMinBlockRows of them if that is more.
  static constexpr size_t kActivationBytes = size_t{48} << 20;
  static constexpr int64_t kMinBlockRows = 256;

  struct Free {
    void operator()(void* memory) const;
  };
  using Memory = std::unique_ptr<void, Free>;
  struct Buffer {
    Memory memory;
    size_t bytes = 0;
    bool reserve(size_t wanted);
  };
  struct Plan;

  LinearServer(std::unique_ptr<LinearEngine> engine, const LinearOptions& options);
  Plan plan_of(const ggml_tensor& node) const;
  bool prepare(const ggml_tensor& node);
  const void* kept_weight(const ggml_tensor& weight);
  void read_weights(const ggml_tensor& weight, int64_t first, int64_t count, void* out);
  const void* activations(const ggml_tensor& node, int64_t first, int64_t count);
  bool multiply(ggml_tensor& node);
  int64_t most_rows(int64_t k) const;
  int64_t gated_slice(int64_t n, int64_t k) const;
  bool may_wait(const ggml_tensor& node) const;
  bool is_gate_of_waiting(const ggml_tensor& node) const;
  bool wait(ggml_tensor& node);
  bool compute_waiting();
  bool serve_gated(const ggml_tensor& node);

  std::unique_ptr<LinearEngine> engine_;
  LinearOptions options_;
  LinearStats stats_;
  Buffer weight_buffer_, activation_buffer_, gated_buffer_;
  struct {
    const ggml_tensor *input = nullptr, *node = nullptr;
    const void* data = nullptr;
  } formed_;  // what a buffer holds all rows of, and the first product of it
  NormServer norms_;
  GatedLayers layers_;
  std::vector<ggml_tensor*> waiting_;   // products of a gated layer, of formed_.input
  std::map<const void*, Memory> kept_;  // by the weight's data
  size_t kept_bytes_ = 0;
};

}  // namespace tsp::ggml_adapter
