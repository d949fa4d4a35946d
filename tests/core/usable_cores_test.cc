// SPDX-License-Identifier: MIT
// CPU quotas of control groups, read from folders made for the test.
#include "core/usable_cores.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "tests/support/temporary_folder.h"

namespace tsp {
namespace {

namespace fs = std::filesystem;

class CpuQuota : public testing::Test {
 protected:
  void write(const std::string& path, const std::string& text) const {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text << '\n';
  }
  void write_v1(const std::string& group, int quota, int period = 100000) const {
    write(group + "/cpu.cfs_quota_us", std::to_string(quota));
    write(group + "/cpu.cfs_period_us", std::to_string(period));
  }
  double quota(const std::string& membership) const {
    return cpu_quota(membership, root_.string());
  }
  bool unlimited(const std::string& membership) const { return std::isinf(quota(membership)); }

  const test::TemporaryFolder temporary_;
  const fs::path& root_ = temporary_.path();
};

TEST_F(CpuQuota, NoGroupsAreNoLimit) {
  EXPECT_TRUE(unlimited(""));
  EXPECT_TRUE(unlimited("0::/\n"));
  EXPECT_TRUE(unlimited("nonsense\n::\n1:cpu\n1:cpu:\n0::a/b\n"));
  EXPECT_TRUE(std::isinf(cpu_quota("0::/\n", "/nowhere")));
}

TEST_F(CpuQuota, Version2) {
  write("a/cpu.max", "50000 100000");
  EXPECT_EQ(quota("0::/a\n"), 0.5);
  EXPECT_TRUE(unlimited("0::/b\n"));
  write("a/cpu.max", "max 100000");
  EXPECT_TRUE(unlimited("0::/a\n"));
  for (const char* odd : {"", "max", "x y", "0 100000", "100000 0", "-1 100000", "100000"}) {
    write("a/cpu.max", odd);
    EXPECT_TRUE(unlimited("0::/a\n")) << odd;
  }
}

TEST_F(CpuQuota, TheSmallestOfNestedGroupsCounts) {
  write("a/cpu.max", "150000 100000");
  write("a/b/cpu.max", "max 100000");
  write("a/b/c/cpu.max", "800000 200000");
  EXPECT_EQ(quota("0::/a/b/c\n"), 1.5);
  write("a/b/c/cpu.max", "20000 10000");
  EXPECT_EQ(quota("0::/a/b/c\n"), 1.5);
  write("a/b/c/cpu.max", "2500 10000");
  EXPECT_EQ(quota("0::/a/b/c\n"), 0.25);
}

TEST_F(CpuQuota, Version1WhereverItsControllerIsMounted) {
  for (const std::string controllers : {"cpu", "cpu,cpuacct", "cpuacct,cpu"}) {
    for (const std::string& mount : {controllers, std::string("cpu")}) {
      write_v1(mount + "/x/y", 200000);
      write_v1(mount + "/x", 150000);
      write_v1(mount, -1);
      EXPECT_EQ(quota("9:name=systemd:/\n4:" + controllers + ":/x/y\n0::/\n"), 1.5);
      EXPECT_TRUE(unlimited("4:" + controllers + ":/\n"));
      fs::remove_all(root_ / mount);
    }
  }
  write_v1("cpuset", 50000);
  EXPECT_TRUE(unlimited("2:cpuset:/\n3:cpuacct:/\n"));
}

TEST_F(CpuQuota, AContainerSeesItsGroupAsTheRoot) {
  write("cpu.max", "100000 100000");
  EXPECT_EQ(quota("0::/machine/of/the/host\n"), 1);
  fs::remove(root_ / "cpu.max");
  write_v1("cpu,cpuacct", 250000);
  EXPECT_EQ(quota("3:cpu,cpuacct:/docker/0123\n"), 2.5);
}

TEST_F(CpuQuota, BothVersionsAtOnce) {
  write_v1("cpu/x", 300000);
  write("unified/y/cpu.max", "100000 100000");
  EXPECT_EQ(quota("1:cpu:/x\n0::/\n"), 3);
  EXPECT_EQ(quota("1:cpu:/x\n0::/y\n"), 1);
}

TEST(UsableCores, IsAtLeastOneAndAtMostTheMachines) {
  EXPECT_GE(usable_cores(), 1);
  EXPECT_LE(usable_cores(), 4096);
}

}  // namespace
}  // namespace tsp
