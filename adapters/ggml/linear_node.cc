// SPDX-License-Identifier: MIT
#include "adapters/ggml/linear_node.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <utility>
#include <vector>

#include "adapters/ggml/weight_rows.h"

namespace tsp::ggml_adapter {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

int64_t rows_of(const ggml_tensor& tensor) { return tensor.ne[1] * tensor.ne[2] * tensor.ne[3]; }

/// Rows of ne[0] elements of f32, one after the other.
bool is_dense_f32(const ggml_tensor& tensor) {
  if (tensor.type != GGML_TYPE_F32 || tensor.nb[0] != sizeof(float)) return false;
  size_t bytes = sizeof(float);
  for (int axis = 0; axis < GGML_MAX_DIMS; ++axis) {
    if (tensor.ne[axis] > 1 && tensor.nb[axis] != bytes) return false;
    bytes *= static_cast<size_t>(tensor.ne[axis]);
  }
  return true;
}

/// Rows of k elements that a thread takes at once: enough to make taking them cheap.
int64_t rows_at_once(int64_t k) { return std::max(int64_t{1}, (int64_t{1} << 16) / k); }

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

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
      return "weights that are f32 or cannot be dequantised";
    case LinearRefusal::kRepacked:
      return "weights that ggml has repacked or split over devices";
    case LinearRefusal::kBatched:
      return "a batch of weights";
    case LinearRefusal::kLayout:
      return "an unexpected layout of weight, activations or result";
    case LinearRefusal::kLibrary:
      return "oneDNN cannot serve the shape, or memory is short";
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
  if (weight.type == GGML_TYPE_F32 || traits == nullptr || traits->to_float == nullptr) {
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

std::unique_ptr<LinearServer> LinearServer::create(const LinearOptions& options, std::string& why) {
  std::unique_ptr<OneDnn> library = OneDnn::open(options.library, options.threads, why);
  if (library == nullptr) return nullptr;
  const bool bf16 = options.precision == LinearPrecision::kAuto
                        ? library->has_bf16()
                        : options.precision == LinearPrecision::kBf16;
  if (bf16 && !library->has_bf16()) {
    why = "this processor has no dot product of bf16";
    return nullptr;
  }
  return std::unique_ptr<LinearServer>(new LinearServer(std::move(library), options, bf16));
}

LinearServer::LinearServer(std::unique_ptr<OneDnn> library, const LinearOptions& options, bool bf16)
    : library_(std::move(library)), options_(options), bf16_(bf16) {}

LinearRefusal LinearServer::check(const ggml_tensor& node) {
  LinearRefusal refusal = refusal_of_shape(node, options_);
  if (refusal == LinearRefusal::kNone && !prepare(node)) refusal = LinearRefusal::kLibrary;
  if (refusal != LinearRefusal::kNone && refusal != LinearRefusal::kNotLinear) {
    ++stats_.refused[static_cast<size_t>(refusal)];
  }
  return refusal;
}

LinearServer::Plan LinearServer::plan_of(const ggml_tensor& node) const {
  Plan plan = {rows_of(node), node.ne[0], node.src[0]->ne[0], 0, 0};
  const auto row_bytes = plan.k * static_cast<int64_t>(element_bytes());
  plan.block_rows = part_of(plan.m, std::max(int64_t{kActivationBytes} / row_bytes, kMinBlockRows));
  plan.slice_rows = part_of(plan.n, std::max(int64_t{kWeightBytes} / row_bytes, int64_t{1}));
  return plan;
}

bool LinearServer::prepare(const ggml_tensor& node) {
  const Plan plan = plan_of(node);
  const bool kept = kept_weight(*node.src[0]) != nullptr;
  const auto bytes = [&](int64_t rows) {
    return static_cast<size_t>(rows * plan.k) * element_bytes();
  };
  if (!kept && !weight_buffer_.reserve(bytes(plan.slice_rows))) return false;
  if (bf16_ && !activation_buffer_.reserve(bytes(plan.block_rows))) return false;
  const int64_t slice = kept ? plan.n : plan.slice_rows;
  for (const int64_t rows : {plan.block_rows, plan.m % plan.block_rows}) {
    for (const int64_t columns : {slice, plan.n % slice}) {
      if (rows == 0 || columns == 0) continue;
      if (!library_->prepare({rows, columns, plan.k, plan.n, bf16_})) return false;
    }
  }
  return true;
}

bool LinearServer::serve(ggml_tensor& node) {
  const auto start = std::chrono::steady_clock::now();
  const ggml_tensor& weight = *node.src[0];
  const Plan plan = plan_of(node);
  const void* kept = kept_weight(weight);
  const int64_t slice = kept != nullptr ? plan.n : plan.slice_rows;
  for (int64_t row = 0; row < plan.m; row += plan.block_rows) {
    const int64_t rows = std::min(plan.block_rows, plan.m - row);
    const void* input = activations(*node.src[1], row, rows);
    for (int64_t column = 0; column < plan.n; column += slice) {
      const int64_t columns = std::min(slice, plan.n - column);
      if (kept == nullptr) dequantise(weight, column, columns, weight_buffer_.memory.get());
      float* out = static_cast<float*>(node.data) + row * plan.n + column;
      const Gemm gemm = {rows, columns, plan.k, plan.n, bf16_};
      if (!library_->run(gemm, input, kept ? kept : weight_buffer_.memory.get(), out)) return false;
    }
  }
  ++stats_.served;
  stats_.served_rows += plan.m;
  stats_.gflop += 2e-9 * static_cast<double>(plan.m) * static_cast<double>(plan.n * plan.k);
  stats_.seconds += seconds_since(start);
  return true;
}

/// The whole weight, dequantised now or before; null where keep_bytes has no room for it.
const void* LinearServer::kept_weight(const ggml_tensor& weight) {
  const auto at = kept_.find(weight.data);
  if (at != kept_.end()) return at->second.get();
  const size_t bytes = static_cast<size_t>(weight.ne[0] * weight.ne[1]) * element_bytes();
  if (kept_bytes_ + bytes > options_.keep_bytes) return nullptr;
  Buffer buffer;
  if (!buffer.reserve(bytes)) return nullptr;
  dequantise(weight, 0, weight.ne[1], buffer.memory.get());
  kept_bytes_ += buffer.bytes;
  return (kept_[weight.data] = std::move(buffer.memory)).get();
}

void LinearServer::dequantise(const ggml_tensor& weight, int64_t first, int64_t count, void* out) {
  const auto start = std::chrono::steady_clock::now();
  const ggml_to_float_t to_float = options_.type_traits(weight.type)->to_float;
  const ReadBf16 direct = bf16_ ? direct_read_bf16(weight.type) : nullptr;
  const int64_t k = weight.ne[0];
  const char* rows =
      static_cast<const char*>(weight.data) + static_cast<size_t>(first) * weight.nb[1];
  const int64_t at_once = rows_at_once(k);
  library_->parallel(ceil_div(count, at_once), [&](int64_t part) {
    thread_local std::vector<float> scratch;
    if (bf16_ && direct == nullptr) scratch.resize(static_cast<size_t>(k));
    const int64_t end = std::min(count, (part + 1) * at_once);
    for (int64_t row = part * at_once; row < end; ++row) {
      const char* packed = rows + static_cast<size_t>(row) * weight.nb[1];
      if (direct != nullptr) {
        direct(packed, static_cast<uint16_t*>(out) + row * k, k);
      } else if (bf16_) {
        to_float(packed, scratch.data(), k);
        to_bf16(scratch.data(), static_cast<uint16_t*>(out) + row * k, k);
      } else {
        to_float(packed, static_cast<float*>(out) + row * k, k);
      }
    }
  });
  stats_.weight_s += seconds_since(start);
}

const void* LinearServer::activations(const ggml_tensor& input, int64_t first, int64_t count) {
  const int64_t k = input.ne[0];
  const float* rows = static_cast<const float*>(input.data) + first * k;
  if (!bf16_) return rows;
  auto* out = static_cast<uint16_t*>(activation_buffer_.memory.get());
  const int64_t at_once = rows_at_once(k);
  library_->parallel(ceil_div(count, at_once), [&](int64_t part) {
    const int64_t begin = part * at_once, end = std::min(count, begin + at_once);
    to_bf16(rows + begin * k, out + begin * k, (end - begin) * k);
  });
  return out;
}

size_t LinearServer::buffer_bytes() const {
  return weight_buffer_.bytes + activation_buffer_.bytes + library_->scratch_bytes();
}

}  // namespace tsp::ggml_adapter
