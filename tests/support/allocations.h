// SPDX-License-Identifier: MIT
// Counts what operator new hands out in this process, the library's calls included.
#pragma once

#include <cstdint>

namespace tsp::test {

/// Allocations so far, on all threads.
int64_t num_allocations();

}  // namespace tsp::test
