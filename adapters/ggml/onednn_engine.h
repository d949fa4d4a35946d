// SPDX-License-Identifier: MIT
// Linear layers in bf16 or f32 through oneDNN: weights are dequantised, activations rounded to bf16
// or taken as they come.
#pragma once

#include <memory>
#include <string>

#include "adapters/ggml/linear_engine.h"
#include "adapters/ggml/onednn.h"

namespace tsp::ggml_adapter {

class OneDnnEngine final : public LinearEngine {
 public:
  OneDnnEngine(std::unique_ptr<OneDnn> library, bool bf16)
      : library_(std::move(library)), bf16_(bf16) {}

  std::string description() const override {
    return "oneDNN " + library_->version() + (bf16_ ? ", bf16" : ", f32");
  }
  bool rounds() const override { return bf16_; }
  /// Both arithmetics do on a Zen 5 (docs/linear.md); a processor with AVX-512 and without bf16 was
  /// not tried.
  bool pays_off() const override { return bf16_ || library_->has_avx512(); }
  void set_threads(int32_t threads) override { library_->set_threads(threads); }

  size_t weight_bytes(int64_t rows, int64_t k) const override { return bytes(rows, k); }
  size_t input_bytes(int64_t rows, int64_t k) const override { return bytes(rows, k); }
  void read_weights(const PackedRows& rows, void* out) override;
  bool converts_inputs() const override { return bf16_; }
  void read_inputs(const float* rows, int64_t count, int64_t k, void* out) override;

  bool prepare(const Product& product) override { return library_->prepare(gemm_of(product)); }
  bool run(const Product& product, const void* inputs, const void* weights, float* c) override {
    return library_->run(gemm_of(product), inputs, weights, c);
  }
  size_t scratch_bytes() const override { return library_->scratch_bytes(); }

 private:
  size_t bytes(int64_t rows, int64_t k) const {
    return static_cast<size_t>(rows * k) * (bf16_ ? sizeof(uint16_t) : sizeof(float));
  }
  Gemm gemm_of(const Product& product) const {
    return {product.m, product.n, product.k, product.c_stride, bf16_};
  }

  std::unique_ptr<OneDnn> library_;
  bool bf16_;
};

}  // namespace tsp::ggml_adapter
