// SPDX-License-Identifier: MIT
// A build with the CUDA backend on a machine without a GPU.
#include <gtest/gtest.h>

#include "tokensparse/tokensparse.hpp"

namespace {

TEST(CudaOpen, WithoutADeviceTheReasonIsOneSentence) {
  tokensparse::ContextOptions options;
  options.backend = TSP_BACKEND_CUDA;
  tokensparse::Context ctx;
  const tokensparse::Status status = tokensparse::Context::create(options, &ctx);
  if (status.ok()) GTEST_SKIP() << "this machine has one";
  EXPECT_EQ(status.code(), TSP_UNAVAILABLE);
  EXPECT_NE(status.message().find("no CUDA device"), std::string::npos) << status.message();
  options.backend = TSP_BACKEND_CPU;
  EXPECT_TRUE(tokensparse::Context::create(options, &ctx).ok()) << "the CPU still serves";
}

}  // namespace
