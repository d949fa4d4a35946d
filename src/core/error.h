// SPDX-License-Identifier: MIT
// Failure as a value: a status code, and one sentence that the thread keeps for tsp_last_error().
#pragma once

#include "tokensparse/types.h"

namespace tsp {

/// Records the formatted sentence for this thread and returns `code`.
[[nodiscard]] __attribute__((format(printf, 2, 3), cold)) tsp_status_t fail(tsp_status_t code,
                                                                            const char* format,
                                                                            ...);

}  // namespace tsp

#define TSP_RETURN_IF_ERROR(expr)                                               \
  do {                                                                          \
    if (const tsp_status_t status_ = (expr); status_ != TSP_OK) return status_; \
  } while (false)
