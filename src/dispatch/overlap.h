// SPDX-License-Identifier: MIT
// Outputs lie apart from everything else that a call reads or writes.
#pragma once

#include <initializer_list>

#include "core/layout.h"
#include "tokensparse/types.h"

namespace tsp {

/// Memory that a call touches, as a view of it. Null data: nothing.
struct Region {
  const char* name;
  tsp_tensor_t view;
};
Region lists_region(const char* name, const tsp_index_sets_t& sets, const tsp_batch_t& batch);
Region counts_region(const char* name, const tsp_index_sets_t& sets, const tsp_batch_t& batch);

/// Fails where an output shares an element with itself, an input or another output, by their names.
/// Views that interleave, such as parts of one tensor, are apart. The blocks of paged views are not
/// looked at.
[[nodiscard]] tsp_status_t check_apart(std::initializer_list<Region> outputs,
                                       std::initializer_list<Region> inputs);

}  // namespace tsp
