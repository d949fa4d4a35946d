// SPDX-License-Identifier: MIT
// Where each params struct ended in ABI 1: callers built against any header since then are served.
// A field appended later goes behind it and changes nothing here.
#pragma once

#include <cstddef>

#include "tokensparse/tokensparse.h"

namespace tsp {

struct ParamsAbi {
  const char* name;
  size_t smallest;  // bytes
};
template <typename Params>
constexpr ParamsAbi params_abi();

#define TSP_ABI_1_ENDS_BEHIND(params, field)                                   \
  template <>                                                                  \
  constexpr ParamsAbi params_abi<params##_t>() {                               \
    return {#params, offsetof(params##_t, field) + sizeof(params##_t::field)}; \
  }
TSP_ABI_1_ENDS_BEHIND(tsp_context_options, parallel_user)
TSP_ABI_1_ENDS_BEHIND(tsp_score_params, workspace_bytes)
TSP_ABI_1_ENDS_BEHIND(tsp_select_params, workspace_bytes)
TSP_ABI_1_ENDS_BEHIND(tsp_compress_params, batch)
TSP_ABI_1_ENDS_BEHIND(tsp_attend_params, workspace_bytes)
TSP_ABI_1_ENDS_BEHIND(tsp_decompress_params, batch)
TSP_ABI_1_ENDS_BEHIND(tsp_estimate_params, workspace_bytes)
TSP_ABI_1_ENDS_BEHIND(tsp_prefill_params, workspace_bytes)
#undef TSP_ABI_1_ENDS_BEHIND

}  // namespace tsp
