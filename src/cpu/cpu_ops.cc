// SPDX-License-Identifier: MIT
// Which CPU paths this machine can run.
#include <cstring>

#include "dispatch/op_table.h"

namespace tsp {

const char* cpu_isas() { return "scalar"; }

const OpTable* cpu_ops(const char* isa) {
  return std::strcmp(isa, "scalar") == 0 ? ref_ops() : nullptr;
}

}  // namespace tsp
