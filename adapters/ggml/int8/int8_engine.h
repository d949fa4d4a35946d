// SPDX-License-Identifier: MIT
// Linear layers in 8-bit integers: weights and activations rotated and quantised in groups of 128
// neighbours (layout.h), products summed in int32 within a group and in f32 over groups. The same
// bits for any number of threads.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "adapters/ggml/int8/kernels.h"
#include "adapters/ggml/int8/layout.h"
#include "adapters/ggml/linear_engine.h"
#include "tokensparse/context.h"

namespace tsp::ggml_adapter {

class Int8Engine final : public LinearEngine {
 public:
  /// Null where the processor has no instruction set for it, with the reason in `why`.
  static std::unique_ptr<Int8Engine> create(int32_t threads, tsp_parallel_fn parallel,
                                            void* parallel_user, std::string& why);
  Int8Engine(const int8::Kernels& kernels, int32_t threads, tsp_parallel_fn parallel, void* user)
      : kernels_(kernels), threads_(threads), parallel_(parallel), parallel_user_(user) {}

  std::string description() const override { return std::string("int8 (") + kernels_.name + ")"; }
  bool rounds() const override { return true; }
  bool pays_off() const override { return true; }
  void set_threads(int32_t threads) override { threads_ = threads; }

  size_t weight_bytes(int64_t rows, int64_t k) const override;
  size_t input_bytes(int64_t rows, int64_t k) const override;
  void read_weights(const PackedRows& rows, void* out) override;
  bool converts_inputs() const override { return true; }
  void read_inputs(const float* rows, int64_t count, int64_t k, void* out) override;

  bool prepare(const Product&) override { return true; }
  bool run(const Product& product, const void* inputs, const void* weights, float* c) override;
  int64_t gated_columns() const override { return int8::kGroup; }
  void run_gated(const GatedProduct& product, const void* inputs, const void* gate, const void* up,
                 void* out) override;
  size_t scratch_bytes() const override { return 0; }

 private:
  void multiply_panel(const uint8_t* tiles, const uint8_t* panel, const Product& product, float* c,
                      const uint8_t* next) const;
  void for_each(int64_t count, const std::function<void(int64_t)>& body) const;

  const int8::Kernels& kernels_;
  int32_t threads_;
  tsp_parallel_fn parallel_;
  void* parallel_user_;
};

}  // namespace tsp::ggml_adapter
