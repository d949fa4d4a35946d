// SPDX-License-Identifier: MIT
// The CPU backend's entries for the op tables, and what they share.
#pragma once

#include <algorithm>
#include <atomic>

#include "core/context.h"
#include "core/layout.h"
#include "core/workspace.h"
#include "cpu/kernels.h"

namespace tsp::cpu {

tsp_status_t score(tsp_context_t& ctx, const tsp_score_params_t& p);
size_t score_workspace(const tsp_context_t& ctx, const tsp_score_params_t& p);
tsp_status_t select(tsp_context_t& ctx, const tsp_select_params_t& p);
size_t select_workspace(const tsp_context_t& ctx, const tsp_select_params_t& p);
tsp_status_t compress(tsp_context_t& ctx, const tsp_compress_params_t& p);
tsp_status_t attend(tsp_context_t& ctx, const tsp_attend_params_t& p);
size_t attend_workspace(const tsp_context_t& ctx, const tsp_attend_params_t& p);
tsp_status_t decompress(tsp_context_t& ctx, const tsp_decompress_params_t& p);
tsp_status_t estimate(tsp_context_t& ctx, const tsp_estimate_params_t& p);
size_t estimate_workspace(const tsp_context_t& ctx, const tsp_estimate_params_t& p);

/// Kernels of the context's instruction set for a tsp_precision_t; null where it has none.
const Kernels* kernels_for(const tsp_context_t& ctx, int32_t precision);
/// Fails where kernels_for() finds none.
tsp_status_t check_arithmetic(const tsp_context_t& ctx, int32_t precision);

inline size_t align64(size_t bytes) { return round_up_to(bytes, 64); }
inline int32_t ceil_div(int32_t n, int32_t by) { return (n + by - 1) / by; }

/// Calls fn(item, thread) for every item, each on whichever thread is free. Items that may run
/// last should be short: that is what the threads wait for at the end.
template <typename Fn>
void for_each_item(tsp_context_t& ctx, int64_t num_items, Fn&& fn) {
  if (num_items <= 0) return;
  if (num_items == 1) {
    fn(int64_t{0}, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  ctx.threads->run([&](int32_t thread) {
    for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < num_items;) {
      fn(item, thread);
    }
  });
}

}  // namespace tsp::cpu
