// SPDX-License-Identifier: MIT
#include "core/usable_cores.h"

#include <sched.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>
#include <thread>

namespace tsp {
namespace {

constexpr double kNoLimit = std::numeric_limits<double>::infinity();

std::string text_of(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  if (file) text << file.rdbuf();
  return text.str();
}

/// The whole number that the text starts with; 0 where it starts with none ("max").
int64_t number_of(std::string_view text) {
  int64_t number = 0;
  std::from_chars(text.data(), text.data() + text.size(), number);
  return number;
}

double share(int64_t quota, int64_t period) {
  return quota > 0 && period > 0 ? static_cast<double>(quota) / static_cast<double>(period)
                                 : kNoLimit;
}

/// Version 2: "max 100000" or "50000 100000", in microseconds.
double quota_v2(const std::string& group) {
  const std::string text = text_of(group + "/cpu.max");
  const size_t space = text.find(' ');
  if (space == std::string::npos) return kNoLimit;
  return share(number_of(text), number_of(std::string_view(text).substr(space + 1)));
}

/// Version 1: -1 is no limit.
double quota_v1(const std::string& group) {
  return share(number_of(text_of(group + "/cpu.cfs_quota_us")),
               number_of(text_of(group + "/cpu.cfs_period_us")));
}

/// The smallest quota of `group` and the groups above it, up to `mount`.
double quota_up(const std::string& mount, std::string group, double (*quota)(const std::string&)) {
  double smallest = quota(mount);
  while (group.size() > 1) {
    smallest = std::min(smallest, quota(mount + group));
    group.resize(group.rfind('/'));
  }
  return smallest;
}

bool has_cpu(const std::string& controllers) {
  return ("," + controllers + ",").find(",cpu,") != std::string::npos;
}

}  // namespace

double cpu_quota(const std::string& membership, const std::string& root) {
  double smallest = kNoLimit;
  std::istringstream lines(membership);
  // "0::/group" is version 2, "4:cpu,cpuacct:/group" version 1.
  for (std::string line; std::getline(lines, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string group = line.substr(second + 1);
    if (group.empty() || group[0] != '/') continue;
    const auto take = [&](const std::string& mount, double (*quota)(const std::string&)) {
      smallest = std::min(smallest, quota_up(root + mount, group, quota));
    };
    if (controllers.empty()) {
      take("", quota_v2);
      take("/unified", quota_v2);
    } else if (has_cpu(controllers)) {
      take("/" + controllers, quota_v1);
      take("/cpu", quota_v1);
    }
  }
  return smallest;
}

int32_t usable_cores() {
  cpu_set_t set;
  int32_t cores = 0;
  if (sched_getaffinity(0, sizeof set, &set) == 0) cores = CPU_COUNT(&set);
  if (cores == 0) cores = static_cast<int32_t>(std::thread::hardware_concurrency());
  // A part of a core counts as one: threads are stopped together when the time is used up.
  const double quota = std::ceil(cpu_quota(text_of("/proc/self/cgroup"), "/sys/fs/cgroup"));
  return std::max(1, quota < cores ? static_cast<int32_t>(quota) : cores);
}

}  // namespace tsp
