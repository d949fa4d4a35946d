// SPDX-License-Identifier: MIT
// Weights read as bf16 beside ggml's to_float and rounding in plain code.
#include "adapters/ggml/weight_rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "adapters/ggml/onednn.h"

namespace tsp::ggml_adapter {
namespace {

uint16_t rounded(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

float value_of(uint16_t bf16) { return std::bit_cast<float>(uint32_t{bf16} << 16); }

bool has_bf16() {
  std::string why;
  const auto library = OneDnn::open("", 1, why);
  return library != nullptr && library->has_bf16();
}

class WeightRows : public testing::TestWithParam<ggml_type> {
 protected:
  void SetUp() override {
    if (!has_bf16()) GTEST_SKIP() << "no bf16 dot product on this processor";
  }
};

TEST_P(WeightRows, ReadsAnyBlockAsGgmlDoes) {
  const ReadBf16 read = direct_read_bf16(GetParam());
  ASSERT_NE(read, nullptr);
  const ggml_type_traits& traits = *ggml_get_type_traits(GetParam());
  constexpr int64_t kCount = 2048;
  std::vector<uint8_t> packed(static_cast<size_t>(kCount / traits.blck_size) * traits.type_size);
  std::vector<float> floats(kCount);
  std::vector<uint16_t> ours(kCount);
  std::mt19937 random(1);
  int64_t compared = 0;
  for (int round = 0; round < 50; ++round) {
    for (uint8_t& byte : packed) byte = static_cast<uint8_t>(random());  // every bit pattern
    traits.to_float(packed.data(), floats.data(), kCount);
    read(packed.data(), ours.data(), kCount);
    // Where a value is a difference, its first part may have been rounded on its own: by no more
    // than the last place of the largest values here.
    float largest = 0;
    for (const float value : floats) {
      if (std::isfinite(value)) largest = std::max(largest, std::fabs(value));
    }
    const float sum_rounding = largest * 0x1p-22f;
    for (size_t i = 0; i < floats.size(); ++i) {
      if (std::isnan(floats[i])) {
        EXPECT_TRUE(std::isnan(value_of(ours[i])));
        continue;
      }
      if (std::fabs(floats[i]) < std::numeric_limits<float>::min()) continue;  // may become zero
      ++compared;
      if (GetParam() == GGML_TYPE_Q4_K && std::isfinite(floats[i])) {
        EXPECT_NEAR(value_of(ours[i]), floats[i], std::fabs(floats[i]) / 256 + sum_rounding);
        continue;
      }
      ASSERT_EQ(ours[i], rounded(floats[i])) << "value " << i << ": " << floats[i];
    }
  }
  EXPECT_GT(compared, 50 * kCount / 2);
}

INSTANTIATE_TEST_SUITE_P(All, WeightRows,
                         testing::Values(GGML_TYPE_Q4_0, GGML_TYPE_Q5_0, GGML_TYPE_Q8_0,
                                         GGML_TYPE_Q4_K, GGML_TYPE_Q6_K, GGML_TYPE_F16),
                         [](const auto& type) { return ggml_type_name(type.param); });

TEST(Bf16, RoundsToNearestEvenAtAnyLength) {
  if (!has_bf16()) GTEST_SKIP() << "no bf16 dot product on this processor";
  const float infinity = std::numeric_limits<float>::infinity();
  std::vector<float> values = {0.0f,         -0.0f, 1.0f,     1.00390625f, 1.01171875f,
                               -1.00390625f, 3e38f, infinity, -infinity,   1e-30f};
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  while (values.size() < 50) values.push_back(normal(random));
  for (size_t count = 0; count <= values.size(); ++count) {
    std::vector<uint16_t> out(values.size(), 0xABCD);
    to_bf16(values.data(), out.data(), static_cast<int64_t>(count));
    for (size_t i = 0; i < out.size(); ++i) {
      EXPECT_EQ(out[i], i < count ? rounded(values[i]) : 0xABCD) << i << " of " << count;
    }
  }
  const float nan = std::nanf("");
  uint16_t out = 0;
  to_bf16(&nan, &out, 1);
  EXPECT_TRUE(std::isnan(value_of(out)));
}

}  // namespace
}  // namespace tsp::ggml_adapter
