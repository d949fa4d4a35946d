// SPDX-License-Identifier: MIT
// What multiplies activations by weights for LinearServer. Each engine holds both in a form of its
// own, in memory that it is given.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "ggml.h"

namespace tsp::ggml_adapter {

/// Rows of a weight as they are in a model file.
struct PackedRows {
  const void* data;
  size_t row_bytes;
  int64_t count, k;
  ggml_type type;
  ggml_to_float_t to_float;  // of the type
};

/// c[m, n] = activations[m, k] x weight[n, k] transposed, summed in f32.
struct Product {
  int64_t m, n, k;
  int64_t c_stride;  // elements from one row of c to the next
};

/// Columns [first, first + n) of silu(activations x gate transposed) * (activations x up
/// transposed), m rows of `width` values, as activations in the engine's form.
struct GatedProduct {
  int64_t m, n, k;
  int64_t first, width;
};

/// y = x over the root of the mean of its squares and eps, times `factors` unless they are null; y
/// may be x.
using Normalise = void (*)(const float* x, const float* factors, int64_t count, float eps,
                           float* y);

class LinearEngine {
 public:
  virtual ~LinearEngine() = default;

  virtual std::string description() const = 0;  // "oneDNN 3.2.0, bf16"
  /// Whether activations lose bits on the way.
  virtual bool rounds() const = 0;
  /// Whether this should beat ggml's own products on this processor.
  virtual bool pays_off() const { return true; }
  virtual void set_threads(int32_t threads) = 0;

  /// Memory for rows of k values in the engine's form.
  virtual size_t weight_bytes(int64_t rows, int64_t k) const = 0;
  virtual size_t input_bytes(int64_t rows, int64_t k) const = 0;
  virtual void read_weights(const PackedRows& rows, void* out) = 0;
  /// False where run() takes activations as they come, f32: then read_inputs() is not called.
  virtual bool converts_inputs() const = 0;
  virtual void read_inputs(const float* rows, int64_t count, int64_t k, void* out) = 0;

  /// What run() needs besides; run() makes it where it was not made.
  [[nodiscard]] virtual bool prepare(const Product& product) = 0;
  [[nodiscard]] virtual bool run(const Product& product, const void* inputs, const void* weights,
                                 float* c) = 0;
  /// Columns that run_gated() takes at once are a multiple of this; 0 where it is not there.
  virtual int64_t gated_columns() const { return 0; }
  /// `gate` and `up` are the weights' rows for these columns alone; `out` holds all columns.
  virtual void run_gated(const GatedProduct&, const void* /*inputs*/, const void* /*gate*/,
                         const void* /*up*/, void* /*out*/) {}
  /// Null where norms between its products are ggml's.
  virtual Normalise normalise() const { return nullptr; }
  /// Memory of its own.
  virtual size_t scratch_bytes() const = 0;
};

}  // namespace tsp::ggml_adapter
