// SPDX-License-Identifier: MIT
// Linear layers by kernels of our own on packed operands (kernels.h), in whatever arithmetic a
// table of them has. The same bits for any number of threads.
#pragma once

#include <string>

#include "adapters/ggml/linear_engine.h"
#include "adapters/ggml/panels/kernels.h"
#include "adapters/ggml/parallel_items.h"

namespace tsp::ggml_adapter {

class PanelEngine final : public LinearEngine {
 public:
  PanelEngine(const panels::Kernels& kernels, const Threads& threads)
      : kernels_(kernels), threads_(threads) {}

  std::string description() const override {
    return std::string(kernels_.arithmetic) + " (" + kernels_.instructions + ")";
  }
  bool rounds() const override { return true; }
  void set_threads(int32_t threads) override { threads_.count = threads; }

  size_t weight_bytes(int64_t rows, int64_t k) const override;
  size_t input_bytes(int64_t rows, int64_t k) const override;
  void read_weights(const PackedRows& rows, void* out) override;
  bool converts_inputs() const override { return true; }
  void read_inputs(const float* rows, int64_t count, int64_t k, void* out) override;

  bool prepare(const Product&) override { return true; }
  bool run(const Product& product, const void* inputs, const void* weights, float* c) override;
  int64_t gated_columns() const override { return panels::kGroup; }
  void run_gated(const GatedProduct& product, const void* inputs, const void* gate, const void* up,
                 void* out) override;
  Normalise normalise() const override { return kernels_.normalise; }
  size_t scratch_bytes() const override { return 0; }

 private:
  int64_t tile_bytes(int64_t k) const;
  int64_t panel_bytes(int64_t k) const;
  int64_t pass_of(int64_t groups) const;
  void multiply_panel(const uint8_t* tiles, const uint8_t* panel, const Product& product, float* c,
                      const uint8_t* next) const;

  const panels::Kernels& kernels_;
  Threads threads_;
};

}  // namespace tsp::ggml_adapter
