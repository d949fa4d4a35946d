// SPDX-License-Identifier: MIT
#include "adapters/ggml/linear_node.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <utility>

#include "adapters/ggml/dense_rows.h"
#include "adapters/ggml/onednn_engine.h"
#include "adapters/ggml/panels/panel_engine.h"

namespace tsp::ggml_adapter {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int64_t kMany = 64;  // engines may round a number of rows up

/// Rows that fit into `limit` bytes.
int64_t fitting(size_t limit, size_t bytes_of_many) {
  return static_cast<int64_t>(limit) * kMany / static_cast<int64_t>(bytes_of_many);
}

/// The size of the parts that `total` is cut into so that none exceeds `limit`: even ones, in whole
/// tiles of the library where that fits.
int64_t part_of(int64_t total, int64_t limit) {
  if (total <= limit) return total;
  constexpr int64_t kTile = 64;
  const int64_t even = ceil_div(total, ceil_div(total, limit));
  const int64_t tiled = ceil_div(even, kTile) * kTile;
  return tiled <= limit ? tiled : even;
}

}  // namespace

const char* refusal_text(LinearRefusal refusal) {
  switch (refusal) {
    case LinearRefusal::kNone:
      return "served";
    case LinearRefusal::kNotLinear:
      return "not a matrix product";
    case LinearRefusal::kFewRows:
      return "few rows (decoding, or the tail of a prompt)";
    case LinearRefusal::kExperts:
      return "a mixture of experts";
    case LinearRefusal::kNotWeight:
      return "both sides are computed";
    case LinearRefusal::kWeightType:
      return "weights of a type that is not served";
    case LinearRefusal::kRepacked:
      return "weights that ggml has repacked or split over devices";
    case LinearRefusal::kBatched:
      return "a batch of weights";
    case LinearRefusal::kLayout:
      return "an unexpected layout of weight, activations or result";
    case LinearRefusal::kLibrary:
      return "the shape cannot be served, or memory is short";
    case LinearRefusal::kCount:
      break;
  }
  return "unknown";
}

LinearRefusal refusal_of_shape(const ggml_tensor& node, const LinearOptions& options) {
  if (node.op == GGML_OP_MUL_MAT_ID) {
    return node.src[1]->ne[2] < options.min_rows ? LinearRefusal::kFewRows
                                                 : LinearRefusal::kExperts;
  }
  if (node.op != GGML_OP_MUL_MAT) return LinearRefusal::kNotLinear;
  const ggml_tensor &weight = *node.src[0], &input = *node.src[1];
  if (rows_of(input) < options.min_rows) return LinearRefusal::kFewRows;
  const bool leaf = weight.op == GGML_OP_NONE && weight.view_src == nullptr &&
                    (weight.flags & GGML_TENSOR_FLAG_INPUT) == 0;
  if (!leaf) return LinearRefusal::kNotWeight;
  const ggml_type_traits* traits = options.type_traits(weight.type);
  if (weight.type == GGML_TYPE_F32 || traits == nullptr || traits->to_float == nullptr ||
      (options.kind == LinearKind::kInt8 && !traits->is_quantized)) {
    return LinearRefusal::kWeightType;
  }
  if (weight.extra != nullptr) return LinearRefusal::kRepacked;
  if (weight.ne[2] != 1 || weight.ne[3] != 1) return LinearRefusal::kBatched;
  const bool fits =
      weight.ne[0] == input.ne[0] && weight.ne[0] % traits->blck_size == 0 &&
      weight.nb[0] == traits->type_size &&
      weight.nb[1] == traits->type_size * static_cast<size_t>(weight.ne[0] / traits->blck_size) &&
      is_dense_f32(input) && is_dense_f32(node) && node.ne[0] == weight.ne[1] &&
      rows_of(node) == rows_of(input);
  return fits ? LinearRefusal::kNone : LinearRefusal::kLayout;
}

void LinearServer::Free::operator()(void* memory) const { std::free(memory); }

bool LinearServer::Buffer::reserve(size_t wanted) {
  if (wanted <= bytes) return true;
  constexpr size_t kAlign = 4096;
  const size_t rounded = (wanted + kAlign - 1) / kAlign * kAlign;
  memory.reset();
  memory.reset(std::aligned_alloc(kAlign, rounded));
  bytes = memory == nullptr ? 0 : rounded;
  return memory != nullptr;
}

/// How a product of m rows is cut: blocks of rows, and of each block slices of the weight.
struct LinearServer::Plan {
  int64_t m, n, k;
  int64_t block_rows, slice_rows;
};

namespace {

Threads threads_of(const LinearOptions& options) {
  return {options.threads, options.parallel, options.parallel_user};
}

/// With the fastest kernels of the kind that this processor runs.
std::unique_ptr<LinearEngine> open_panels(const LinearOptions& options, std::string& why) {
  const bool int8 = options.kind == LinearKind::kInt8;
  const auto kernels = int8 ? panels::int8_kernels() : panels::bf16_kernels();
  if (kernels.empty()) {
    why =
        int8 ? "this processor has neither AVX512-VNNI nor AVX-VNNI (dot product of 8-bit integers)"
             : "this processor has no AVX512-BF16 (dot product of bf16)";
    return nullptr;
  }
  return std::make_unique<PanelEngine>(*kernels.front(), threads_of(options));
}

std::unique_ptr<LinearEngine> open_onednn(const LinearOptions& options, std::string& why) {
  std::unique_ptr<OneDnn> library = OneDnn::open(options.library, options.threads, why);
  if (library == nullptr) return nullptr;
  const bool bf16 = options.precision == LinearPrecision::kAuto
                        ? library->has_bf16()
                        : options.precision == LinearPrecision::kBf16;
  if (bf16 && !library->has_bf16()) {
    why = "this processor has no dot product of bf16";
    return nullptr;
  }
  return std::make_unique<OneDnnEngine>(std::move(library), bf16);
}

}  // namespace

std::unique_ptr<LinearServer> LinearServer::create(const LinearOptions& options, std::string& why) {
  std::unique_ptr<LinearEngine> engine =
      options.kind == LinearKind::kOneDnn ? open_onednn(options, why) : open_panels(options, why);
  return engine == nullptr ? nullptr : create(std::move(engine), options);
}

std::unique_ptr<LinearServer> LinearServer::create(std::unique_ptr<LinearEngine> engine,
                                                   const LinearOptions& options) {
  return std::unique_ptr<LinearServer>(new LinearServer(std::move(engine), options));
}

LinearServer::LinearServer(std::unique_ptr<LinearEngine> engine, const LinearOptions& options)
    : engine_(std::move(engine)),
      options_(options),
      norms_(options.share_inputs ? engine_->normalise() : nullptr, options.min_rows) {}

LinearRefusal LinearServer::check(const ggml_tensor& node) {
  if (node.op == GGML_OP_GLU && is_gate_of_waiting(node)) return LinearRefusal::kNone;
  if (norms_.check(node)) return LinearRefusal::kNone;
  LinearRefusal refusal = refusal_of_shape(node, options_);
  if (refusal == LinearRefusal::kNone && !prepare(node)) refusal = LinearRefusal::kLibrary;
  if (refusal != LinearRefusal::kNone && refusal != LinearRefusal::kNotLinear) {
    ++stats_.refused[static_cast<size_t>(refusal)];
  }
  return refusal;
}

/// Rows of activations that are held at once.
int64_t LinearServer::most_rows(int64_t k) const {
  return std::max(fitting(kActivationBytes, engine_->input_bytes(kMany, k)), kMinBlockRows);
}

LinearServer::Plan LinearServer::plan_of(const ggml_tensor& node) const {
  Plan plan = {rows_of(node), node.ne[0], node.src[0]->ne[0], 0, 0};
  const int64_t slice = fitting(kWeightBytes, engine_->weight_bytes(kMany, plan.k));
  plan.block_rows = part_of(plan.m, most_rows(plan.k));
  plan.slice_rows = part_of(plan.n, std::max(slice, int64_t{1}));
  return plan;
}

bool LinearServer::prepare(const ggml_tensor& node) {
  const Plan plan = plan_of(node);
  const bool kept = kept_weight(*node.src[0]) != nullptr;
  if (!kept && !weight_buffer_.reserve(engine_->weight_bytes(plan.slice_rows, plan.k))) {
    return false;
  }
  if (engine_->converts_inputs() && formed_.input != node.src[1]) {
    const size_t before = activation_buffer_.bytes;  // new memory may lie where the old one did
    const bool room = activation_buffer_.reserve(engine_->input_bytes(plan.block_rows, plan.k));
    if (!room || activation_buffer_.bytes != before) formed_ = {};
    if (!room) return false;
  }
  const int64_t slice = kept ? plan.n : plan.slice_rows;
  for (const int64_t rows : {plan.block_rows, plan.m % plan.block_rows}) {
    for (const int64_t columns : {slice, plan.n % slice}) {
      if (rows == 0 || columns == 0) continue;
      if (!engine_->prepare({rows, columns, plan.k, plan.n})) return false;
    }
  }
  return true;
}

bool LinearServer::serve(ggml_tensor& node) {
  if (node.op == GGML_OP_GLU) return serve_gated(node);
  if (node.op != GGML_OP_MUL_MAT) {
    norms_.serve(node, threads_of(options_));
    return true;
  }
  if (may_wait(node) && wait(node)) return true;
  return multiply(node);
}

bool LinearServer::multiply(ggml_tensor& node) {
  const auto start = std::chrono::steady_clock::now();
  const ggml_tensor& weight = *node.src[0];
  const Plan plan = plan_of(node);
  const void* kept = kept_weight(weight);
  const int64_t slice = kept != nullptr ? plan.n : plan.slice_rows;
  for (int64_t row = 0; row < plan.m; row += plan.block_rows) {
    const int64_t rows = std::min(plan.block_rows, plan.m - row);
    const void* input = activations(node, row, rows);
    for (int64_t column = 0; column < plan.n; column += slice) {
      const int64_t columns = std::min(slice, plan.n - column);
      if (kept == nullptr) read_weights(weight, column, columns, weight_buffer_.memory.get());
      float* out = static_cast<float*>(node.data) + row * plan.n + column;
      const Product product = {rows, columns, plan.k, plan.n};
      if (!engine_->run(product, input, kept ? kept : weight_buffer_.memory.get(), out)) {
        return false;
      }
    }
  }
  ++stats_.served;
  stats_.served_rows += plan.m;
  stats_.gflop += 2e-9 * static_cast<double>(plan.m) * static_cast<double>(plan.n * plan.k);
  stats_.seconds += seconds_since(start);
  return true;
}

/// The whole weight in the engine's form, made now or before; null where keep_bytes has no room.
const void* LinearServer::kept_weight(const ggml_tensor& weight) {
  const auto at = kept_.find(weight.data);
  if (at != kept_.end()) return at->second.get();
  const size_t bytes = engine_->weight_bytes(weight.ne[1], weight.ne[0]);
  if (kept_bytes_ + bytes > options_.keep_bytes) return nullptr;
  Buffer buffer;
  if (!buffer.reserve(bytes)) return nullptr;
  read_weights(weight, 0, weight.ne[1], buffer.memory.get());
  kept_bytes_ += buffer.bytes;
  return (kept_[weight.data] = std::move(buffer.memory)).get();
}

void LinearServer::read_weights(const ggml_tensor& weight, int64_t first, int64_t count,
                                void* out) {
  const auto start = std::chrono::steady_clock::now();
  const char* rows =
      static_cast<const char*>(weight.data) + static_cast<size_t>(first) * weight.nb[1];
  const ggml_to_float_t to_float = options_.type_traits(weight.type)->to_float;
  engine_->read_weights({rows, weight.nb[1], count, weight.ne[0], weight.type, to_float}, out);
  stats_.weight_s += seconds_since(start);
}

const void* LinearServer::activations(const ggml_tensor& node, int64_t first, int64_t count) {
  const ggml_tensor& input = *node.src[1];
  const int64_t k = input.ne[0];
  const float* rows = static_cast<const float*>(input.data) + first * k;
  if (!engine_->converts_inputs()) return rows;
  if (formed_.input == &input && formed_.node != &node) return formed_.data;
  formed_ = {};
  void* const out = activation_buffer_.memory.get();
  engine_->read_inputs(rows, count, k, out);
  if (options_.share_inputs && count == rows_of(input)) formed_ = {&input, &node, out};
  return out;
}

size_t LinearServer::buffer_bytes() const {
  return weight_buffer_.bytes + activation_buffer_.bytes + gated_buffer_.bytes +
         engine_->scratch_bytes();
}

void LinearServer::begin_graph() {
  formed_ = {};
  waiting_.clear();
  norms_.begin_graph();
  layers_.begin_graph();
}

bool LinearServer::saw(const ggml_tensor& node) {
  norms_.saw(node, threads_of(options_));
  layers_.saw(node, refusal_of_shape(node, options_) == LinearRefusal::kNone);
  if (waiting_.empty() || is_gate_of_waiting(node)) return true;
  if (node.op == GGML_OP_MUL_MAT && may_wait(node)) return true;
  return compute_waiting();
}

// A product waits for its partner, and both for the GLU. Activations are brought into form at once:
// their memory may be another tensor's by then.

int64_t LinearServer::gated_slice(int64_t n, int64_t k) const {
  const int64_t step = engine_->gated_columns();
  const int64_t limit = fitting(kWeightBytes / 2, engine_->weight_bytes(kMany, k)) / step * step;
  if (limit == 0) return 0;
  return ceil_div(ceil_div(n, ceil_div(n, limit)), step) * step;
}

bool LinearServer::may_wait(const ggml_tensor& node) const {
  const int64_t step = engine_->gated_columns(), m = rows_of(node), n = node.ne[0];
  if (!options_.share_inputs || step == 0 || !layers_.gated(node) || n % step != 0) return false;
  const int64_t k = node.src[0]->ne[0];
  if (m > most_rows(k) || m > most_rows(n) || gated_slice(n, k) == 0) return false;
  return waiting_.empty() || (waiting_.size() == 1 && waiting_[0]->src[1] == node.src[1] &&
                              waiting_[0]->ne[0] == n && waiting_[0] != &node);
}

bool LinearServer::is_gate_of_waiting(const ggml_tensor& node) const {
  return waiting_.size() == 2 && is_swiglu(node) &&
         ((node.src[0] == waiting_[0] && node.src[1] == waiting_[1]) ||
          (node.src[0] == waiting_[1] && node.src[1] == waiting_[0]));
}

/// False where memory is short, before anything is done. The product that reads the GLU then finds
/// all that it needs.
bool LinearServer::wait(ggml_tensor& node) {
  if (!gated_buffer_.reserve(engine_->input_bytes(rows_of(node), node.ne[0])) ||
      !weight_buffer_.reserve(kWeightBytes)) {
    return false;
  }
  const auto start = std::chrono::steady_clock::now();
  (void)activations(node, 0, rows_of(node));
  waiting_.push_back(&node);
  stats_.seconds += seconds_since(start);
  return true;
}

/// As if they had not waited.
bool LinearServer::compute_waiting() {
  const std::vector<ggml_tensor*> nodes = std::exchange(waiting_, {});
  return std::all_of(nodes.begin(), nodes.end(),
                     [&](ggml_tensor* node) { return multiply(*node); });
}

bool LinearServer::serve_gated(const ggml_tensor& node) {
  const auto start = std::chrono::steady_clock::now();
  const ggml_tensor* const weights[2] = {node.src[0]->src[0], node.src[1]->src[0]};
  const int64_t m = rows_of(node), n = node.ne[0], k = weights[0]->ne[0];
  const int64_t slice = gated_slice(n, k);
  const void* const kept[2] = {kept_weight(*weights[0]), kept_weight(*weights[1])};
  auto* const buffer = static_cast<char*>(weight_buffer_.memory.get());
  for (int64_t first = 0; first < n; first += slice) {
    const int64_t columns = std::min(slice, n - first);
    const void* rows[2];
    for (size_t i = 0; i < 2; ++i) {
      if (kept[i] != nullptr) {
        rows[i] = static_cast<const char*>(kept[i]) + engine_->weight_bytes(first, k);
      } else {
        char* const out = buffer + i * engine_->weight_bytes(slice, k);
        read_weights(*weights[i], first, columns, out);
        rows[i] = out;
      }
    }
    engine_->run_gated({m, columns, k, first, n}, formed_.data, rows[0], rows[1],
                       gated_buffer_.memory.get());
  }
  waiting_.clear();
  formed_ = {&node, &node, gated_buffer_.memory.get()};
  stats_.served += 2;
  stats_.served_rows += 2 * m;
  stats_.gflop += 4e-9 * static_cast<double>(m) * static_cast<double>(n * k);
  stats_.seconds += seconds_since(start);
  return true;
}

}  // namespace tsp::ggml_adapter
