// SPDX-License-Identifier: MIT
// Workspace pieces as cudaMalloc aligns its own.
#pragma once

#include "core/workspace.h"

namespace tsp::cuda {

using Scratch = Workspace<256>;

}  // namespace tsp::cuda
