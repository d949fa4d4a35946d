// SPDX-License-Identifier: MIT
// What the program knows about cards without one: the driver's version from its text, tensor rates.
#include "cli/gpu.h"

#include <gtest/gtest.h>

namespace tsp::cli {
namespace {

TEST(Gpu, DriverVersionIsTheFirstNumberBehindTheModule) {
  EXPECT_EQ(driver_version("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 "
                           "01:15:15 UTC 2023\nGCC version:  gcc version 12.2.0\n"),
            "535.104.05");
  EXPECT_EQ(driver_version("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  "
                           "Release Build  (root@host)\n"),
            "580.159.04");
}

TEST(Gpu, DriverVersionIsEmptyWhereTheTextHasNone) {
  EXPECT_EQ(driver_version(""), "");
  EXPECT_EQ(driver_version("GCC version:  gcc version 12.2.0\n"), "");
  EXPECT_EQ(driver_version("NVIDIA Kernel Module for x86_64"), "");
}

TEST(Gpu, TensorRatesArePublishedOnes) {
  // Dense bf16: A100 312 TFLOP/s with 108 multiprocessors at 1.41 GHz, H100 989 with 132 at 1.83.
  EXPECT_NEAR(108 * 1.41e9 * tensor_flops_per_clock(8, 0), 312e12, 1e12);
  EXPECT_NEAR(132 * 1.83e9 * tensor_flops_per_clock(9, 0), 989e12, 1e12);
  EXPECT_EQ(tensor_flops_per_clock(7, 5), 0) << "older than what the backend runs on";
}

}  // namespace
}  // namespace tsp::cli
