// SPDX-License-Identifier: MIT
// A GGML_OP_MUL_MAT node of random values, and how far its result is from double precision.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

namespace tsp::test {

struct ProductShape {
  int64_t m = 64, n = 96, k = 256;
  ggml_type type = GGML_TYPE_Q8_0;
};

/// weight x input, random values, memory for both and for the result.
class ProductNode {
 public:
  explicit ProductNode(const ProductShape& shape, uint32_t seed = 1) : shape_(shape) {
    const size_t bytes = 8 * static_cast<size_t>(shape.k * (shape.n + shape.m) + shape.m * shape.n);
    ctx_.reset(
        ggml_init({.mem_size = bytes + (1u << 20), .mem_buffer = nullptr, .no_alloc = false}));
    weight_ = ggml_new_tensor_2d(ctx_.get(), shape.type, shape.k, shape.n);
    input_ = ggml_new_tensor_2d(ctx_.get(), GGML_TYPE_F32, shape.k, shape.m);
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(shape.k * shape.n));
    for (float& value : values) value = 0.05f * normal(random);
    ggml_quantize_chunk(shape.type, values.data(), weight_->data, 0, shape.n, shape.k, nullptr);
    auto* input = static_cast<float*>(input_->data);
    for (int64_t i = 0; i < shape.k * shape.m; ++i) input[i] = normal(random);
    node_ = ggml_mul_mat(ctx_.get(), weight_, input_);
    std::fill_n(result(), shape.m * shape.n, std::nanf(""));
  }

  ggml_context* ctx() { return ctx_.get(); }
  ggml_tensor* weight() { return weight_; }
  ggml_tensor* input() { return input_; }
  ggml_tensor* get() { return node_; }
  float* result() { return static_cast<float*>(node_->data); }

  void run_ggml() {
    ggml_cgraph* graph = ggml_new_graph_custom(ctx_.get(), 4, false);
    ggml_build_forward_expand(graph, node_);
    ASSERT_EQ(ggml_graph_compute_with_ctx(ctx_.get(), graph, 2), GGML_STATUS_SUCCESS);
  }

  /// RMS of the difference from the product in double precision over the RMS of that, over every
  /// `step`-th row and column.
  double error(int64_t step = 1) {
    const auto to_float = ggml_get_type_traits(shape_.type)->to_float;
    std::vector<float> row(static_cast<size_t>(shape_.k));
    double difference = 0, norm = 0;
    for (int64_t n = 0; n < shape_.n; n += step) {
      to_float(static_cast<char*>(weight_->data) + static_cast<size_t>(n) * weight_->nb[1],
               row.data(), shape_.k);
      for (int64_t m = 0; m < shape_.m; m += step) {
        const float* input = static_cast<float*>(input_->data) + m * shape_.k;
        double sum = 0;
        for (int64_t k = 0; k < shape_.k; ++k)
          sum += double{row[static_cast<size_t>(k)]} * input[k];
        const double miss = result()[m * shape_.n + n] - sum;
        difference += miss * miss;
        norm += sum * sum;
      }
    }
    return std::sqrt(difference / norm);
  }

 private:
  struct Free {
    void operator()(ggml_context* ctx) const { ggml_free(ctx); }
  };
  ProductShape shape_;
  std::unique_ptr<ggml_context, Free> ctx_;
  ggml_tensor *weight_, *input_, *node_;
};

}  // namespace tsp::test
