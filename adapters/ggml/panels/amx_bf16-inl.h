// SPDX-License-Identifier: MIT
// Products of pairs of bf16 by AMX, summed in f32 where they are: 32 rows by 32 columns of 16-row
// tiles. Subnormal values and sums are zero. Included after the tile operations: those of the
// processor, or emulated ones.
#pragma once

#include "adapters/ggml/panels/avx512_bf16-inl.h"

namespace tsp::ggml_adapter::panels {
namespace {

struct AmxBf16 {
  static constexpr int kRows = 32, kColumns = kBf16PanelRows;
  static constexpr int kSide = 16;                      // of a tile of sums
  static constexpr int kStep = 64;                      // bytes of a row of a tile
  static constexpr int64_t kPairsBytes = 4 * kColumns;  // a row of pairs in a panel, or of sums

  static __attribute__((always_inline)) void add_step(const uint8_t* rows, const uint8_t* columns) {
    using namespace cpu;
    tile_load<4>(rows, kRowBytes);
    tile_load<6>(columns, kPairsBytes);
    tile_dot<0, 4, 6>();
    tile_load<7>(columns + kStep, kPairsBytes);
    tile_dot<1, 4, 7>();
    tile_load<5>(rows + kSide * kRowBytes, kRowBytes);
    tile_dot<2, 5, 6>();
    tile_dot<3, 5, 7>();
  }

  static void load_sums(const float* at, int64_t stride) {
    using namespace cpu;
    tile_load<0>(at, 4 * stride);
    tile_load<1>(at + kSide, 4 * stride);
    tile_load<2>(at + kSide * stride, 4 * stride);
    tile_load<3>(at + kSide * stride + kSide, 4 * stride);
  }

  static void store_sums(float* at, int64_t stride) {
    using namespace cpu;
    tile_store<0>(at, 4 * stride);
    tile_store<1>(at + kSide, 4 * stride);
    tile_store<2>(at + kSide * stride, 4 * stride);
    tile_store<3>(at + kSide * stride + kSide, 4 * stride);
  }

  static void multiply(const uint8_t* tile, const uint8_t* panel, const Part& part, float* c,
                       int64_t c_stride) {
    using namespace cpu;
    alignas(64) float totals[kRows * kColumns];
    prefetch_result(part, c, c_stride);
    const bool whole = part.rows == kRows && part.columns == kColumns;
    if (!part.add) {
      tile_zero<0>();
      tile_zero<1>();
      tile_zero<2>();
      tile_zero<3>();
    } else if (whole) {
      load_sums(c, c_stride);
    } else {
      load_part<kRows, kColumns>(part, c, c_stride, totals);
      load_sums(totals, kColumns);
    }
    for (int64_t group = 0; group < part.groups; ++group) {
      for (int step = 0; step < kRowBytes; step += kStep, panel += kSide * kPairsBytes) {
        add_step(tile + step, panel);
      }
      tile += kRows * kRowBytes;
    }
    if (whole) {
      store_sums(c, c_stride);
    } else {
      store_sums(totals, kColumns);
      store_part<kColumns>(part, totals, c, c_stride);
    }
  }
};

}  // namespace
}  // namespace tsp::ggml_adapter::panels
