// SPDX-License-Identifier: MIT
// How 8-bit operands lie in memory.
//
// kGroup neighbours in a row, a group, are multiplied by Hadamard's matrix, activations and weights
// alike, which leaves their products what they were (times kGroup) and spreads an outlier over its
// group; then they share a scale, the largest magnitude over 127. The last group of a row is filled
// up with zeros.
//
// Activations: tiles of kTileRows rows; per group of a tile
//   int8_t  values[kTileRows][kGroup]           as uint8_t plus 128 where kUnsigned
//   float   scales[kTileRows]
// Weights: panels of kPanelRows rows, which are columns of the result; per group of a panel
//   int8_t  values[kGroup / 4][kPanelRows][4]
//   float   scales[kPanelRows]                  over kGroup
//   int32_t starts[kPanelRows]                  -128 times the sum of the group's values
// the last where kUnsigned: a sum which begins at `start` and adds the products of four neighbours
// at a time, unsigned by signed, ends at the sum of the products of the values proper.
#pragma once

#include <string.h>

#include "adapters/ggml/panels/kernels.h"

namespace tsp::ggml_adapter::panels {

// Scales cost a conversion, a product and a sum per group and sum: 12 to 17 % of the time at 128
// values, 40 % at 32. With groups of 128 that are not multiplied by the matrix, a model's logits
// are twice as far off (docs/linear.md).
static_assert(kGroup == 128);
inline constexpr int64_t kPanelRows = 32;
inline constexpr int64_t kLevels = 127;

struct VnniLayout {
  static constexpr bool kUnsigned = true;  // as the instruction takes activations
  static constexpr int64_t kTileRows = 6;
  static constexpr int64_t kTileGroupBytes = kTileRows * (kGroup + int64_t{sizeof(float)});
  static constexpr int64_t kPanelGroupBytes =
      kPanelRows * (kGroup + int64_t{sizeof(float)} + int64_t{sizeof(int32_t)});
};

/// Tiles are two of the processor's.
struct AmxLayout {
  static constexpr bool kUnsigned = false;
  static constexpr int64_t kTileRows = 32;
  static constexpr int64_t kTileGroupBytes = kTileRows * (kGroup + int64_t{sizeof(float)});
  static constexpr int64_t kPanelGroupBytes = kPanelRows * (kGroup + int64_t{sizeof(float)});
};

namespace {  // a unit never shares code with one of other flags

constexpr int64_t kQuads = kGroup / 4;

/// A group's values become whole numbers by `factor`, unless they are not `usable`: then zeros.
struct GroupScale {
  float scale, factor;
  bool usable;
};

/// Of a group's largest magnitude, by its bits: compared as integers, NaN is the largest. One that
/// is no number, or infinite, gives a scale that is no number, so does every result that it takes
/// part in; one too small to be divided by gives zeros.
inline GroupScale group_scale(int largest) {
  constexpr int kInfinity = 0x7F800000;
  constexpr float kSmallest = 0x1p-100f, kLargest = kLevels;
  if (largest >= kInfinity) return {__builtin_nanf(""), 0, false};
  float magnitude;
  memcpy(&magnitude, &largest, sizeof magnitude);
  if (magnitude < kSmallest) return {0, 0, false};
  return {magnitude / kLargest, kLargest / magnitude, true};
}

/// Brings a row's values, quad after quad, with their scale into a group of a panel; `start` where
/// the layout has it.
template <class Layout>
inline void store_panel_row(const void* values, float scale, int32_t start, int64_t row,
                            uint8_t* group) {
  for (int64_t quad = 0; quad < kQuads; ++quad) {
    memcpy(group + 4 * (quad * kPanelRows + row), static_cast<const char*>(values) + 4 * quad, 4);
  }
  uint8_t* scales = group + kPanelRows * kGroup;
  memcpy(scales + 4 * row, &scale, sizeof scale);
  if constexpr (Layout::kUnsigned) memcpy(scales + 4 * (kPanelRows + row), &start, sizeof start);
}

}  // namespace
}  // namespace tsp::ggml_adapter::panels
