// SPDX-License-Identifier: MIT
// What the adapter reads from a mask, and which masks it turns down.
#include "adapters/ggml/causal_mask.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <vector>

#include "ggml.h"

namespace tsp::ggml_adapter {
namespace {

constexpr ggml_fp16_t kVisible = 0x0000, kHidden = 0xFC00, kMinusOne = 0xBC00;

/// Mask [n_kv, rows] in which row i sees the keys 0 .. k_len - rows + i.
struct Mask {
  Mask(int64_t rows, int64_t k_len, int64_t num_keys)
      : values(static_cast<size_t>(rows * num_keys), kHidden), n_kv(num_keys) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t key = 0; key <= k_len - rows + row; ++key) at(row, key) = kVisible;
    }
    tensor.ne[0] = n_kv;
    tensor.ne[1] = rows;
    tensor.nb[0] = sizeof(ggml_fp16_t);
    tensor.nb[1] = static_cast<size_t>(n_kv) * sizeof(ggml_fp16_t);
    tensor.data = values.data();
  }
  ggml_fp16_t& at(int64_t row, int64_t key) {
    return values[static_cast<size_t>(row * n_kv + key)];
  }

  std::vector<ggml_fp16_t> values;
  int64_t n_kv;
  ggml_tensor tensor = {};
};

TEST(CausalMask, DerivesTheLengthFromTheLastRow) {
  for (const auto& [rows, k_len, n_kv] : std::vector<std::array<int64_t, 3>>{
           {1, 1, 256}, {64, 64, 256}, {64, 256, 256}, {100, 300, 512}, {130, 131, 256}}) {
    Mask mask(rows, k_len, n_kv);
    const CausalMask read = read_causal_mask(mask.tensor);
    EXPECT_EQ(read.kind, MaskKind::kPrefix);
    EXPECT_EQ(read.k_len, k_len);
  }
}

TEST(CausalMask, TurnsDownASlidingWindow) {
  Mask mask(100, 300, 512);
  for (int64_t row = 0; row < 100; ++row) {
    for (int64_t key = 0; key < 200 + row - 50; ++key) mask.at(row, key) = kHidden;
  }
  EXPECT_EQ(read_causal_mask(mask.tensor).kind, MaskKind::kNotFirst);
}

TEST(CausalMask, TurnsDownAWindowThatOnlyTheLastRowsLeave) {
  Mask mask(100, 100, 256);
  for (int64_t row = 90; row < 100; ++row) mask.at(row, 0) = kHidden;
  EXPECT_EQ(read_causal_mask(mask.tensor).kind, MaskKind::kNotFirst);
}

TEST(CausalMask, TurnsDownASecondSequenceInTheCache) {
  Mask mask(128, 128, 256);  // rows 0..63 are sequence 0, rows 64..127 sequence 1
  for (int64_t row = 64; row < 128; ++row) {
    for (int64_t key = 0; key < 64; ++key) mask.at(row, key) = kHidden;
  }
  EXPECT_EQ(read_causal_mask(mask.tensor).kind, MaskKind::kNotFirst);
}

TEST(CausalMask, TurnsDownWhatIsNotAPrefix) {
  const auto kind_with = [](int64_t row, int64_t key, ggml_fp16_t value) {
    Mask mask(100, 300, 512);
    mask.at(row, key) = value;
    return read_causal_mask(mask.tensor).kind;
  };
  EXPECT_EQ(kind_with(99, 150, kHidden), MaskKind::kNotPrefix) << "a hole in the cache";
  EXPECT_EQ(kind_with(99, 300, kVisible), MaskKind::kNotPrefix) << "rows begin before key 0";
  EXPECT_EQ(kind_with(99, 400, kVisible), MaskKind::kNotPrefix) << "a key beyond the last row";
  EXPECT_EQ(kind_with(30, 231, kVisible), MaskKind::kNotPrefix) << "a row that sees the next token";
  EXPECT_EQ(kind_with(30, 230, kHidden), MaskKind::kNotPrefix) << "a row that misses itself";
  EXPECT_EQ(kind_with(30, 511, kVisible), MaskKind::kNotPrefix) << "a key in the padding";
  EXPECT_EQ(kind_with(64, 77, kMinusOne), MaskKind::kNotPrefix) << "a bias";
  EXPECT_EQ(kind_with(0, 0, kMinusOne), MaskKind::kNotPrefix) << "a bias on the first key";
}

TEST(CausalMask, TurnsDownOneOddValueWhereverItIs) {
  constexpr int64_t kRows = 70, kKeys = 90;
  Mask mask(kRows, 80, kKeys);
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t key = 0; key < kKeys; ++key) {
      ggml_fp16_t& value = mask.at(row, key);
      const ggml_fp16_t before = value;
      value = before == kVisible ? kHidden : kVisible;
      EXPECT_NE(read_causal_mask(mask.tensor).kind, MaskKind::kPrefix) << row << ", " << key;
      value = kMinusOne;
      EXPECT_NE(read_causal_mask(mask.tensor).kind, MaskKind::kPrefix) << row << ", " << key;
      value = before;
    }
  }
  EXPECT_EQ(read_causal_mask(mask.tensor).kind, MaskKind::kPrefix);
}

TEST(CausalMask, TurnsDownBidirectionalRows) {
  Mask mask(64, 64, 256);
  for (int64_t row = 0; row < 64; ++row) {
    for (int64_t key = 0; key < 64; ++key) mask.at(row, key) = kVisible;
  }
  EXPECT_EQ(read_causal_mask(mask.tensor).kind, MaskKind::kNotPrefix);
}

TEST(CausalMask, TurnsDownAnEmptyOne) {
  Mask mask(64, 64, 256);
  std::fill(mask.values.begin(), mask.values.end(), kHidden);
  EXPECT_EQ(read_causal_mask(mask.tensor).kind, MaskKind::kNotFirst);
}

}  // namespace
}  // namespace tsp::ggml_adapter
