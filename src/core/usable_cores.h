// SPDX-License-Identifier: MIT
// How many threads this process can keep busy at once.
#pragma once

#include <cstdint>
#include <string>

namespace tsp {

/// Cores that the process may run on (its affinity), or fewer where a control group grants less
/// time than that. At least 1.
int32_t usable_cores();

/// Cores' worth of time that the control groups of a process grant, the smallest of its own group
/// and those above; infinity without a limit. `membership` is the text of /proc/PID/cgroup, `root`
/// where the groups are mounted, in version 1, 2 or both. A container may see its own group as the
/// root and yet the machine's path in `membership`: groups that are not there are passed over.
double cpu_quota(const std::string& membership, const std::string& root);

}  // namespace tsp
