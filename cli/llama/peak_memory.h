// SPDX-License-Identifier: MIT
// How much memory the process had resident at its highest, by what Linux says about it.
#pragma once

#include <cstdint>

namespace tsp::cli {

/// Starts a new maximum. Where the system does not allow it, peak_memory() is the process's.
void reset_peak_memory();
/// In bytes; 0 where it is not known.
int64_t peak_memory();

/// Bytes that the system, or the container that limits this process, has left. 0 where neither
/// says.
int64_t available_memory();

}  // namespace tsp::cli
