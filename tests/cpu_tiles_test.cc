// SPDX-License-Identifier: MIT
// AMX's tiles belong to a thread, which other libraries use as well.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/tiles.h"
#include "tokensparse/tokensparse.hpp"

namespace tsp {
namespace {

TEST(CpuTiles, AreLeftAsTheyWereConfigured) {
  if (std::string(tsp_cpu_isas()).find("amx_bf16") == std::string::npos) {
    GTEST_SKIP() << "no AMX on this processor";
  }
  tokensparse::ContextOptions options;
  options.isa = "amx_bf16";
  options.num_threads = 1;  // the calling one
  tokensparse::Context context;
  ASSERT_TRUE(tokensparse::Context::create(options, &context).ok());
  constexpr int64_t kTokens = 300, kHeads = 2, kDim = 64;
  std::vector<float> values(kTokens * kHeads * kDim, 0.5f), out(values.size());
  tokensparse::PrefillParams params;
  params.q = params.k = params.v = tokensparse::view(values.data(), kTokens, kHeads, kDim);
  params.out = tokensparse::view(out.data(), kTokens, kHeads, kDim);
  params.coverage = 0.1f;
  params.precision = TSP_PRECISION_BF16;
  const test::TileConfig configured = test::configure_tiles();
  const tokensparse::Status status = tokensparse::prefill(context, params);
  const test::TileConfig after = test::tiles_as_configured();
  test::release_tiles();
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(after, configured);
  EXPECT_TRUE(tokensparse::prefill(context, params).ok());
  EXPECT_EQ(test::tiles_as_configured(), test::TileConfig{}) << "nothing to be saved";
}

}  // namespace
}  // namespace tsp
