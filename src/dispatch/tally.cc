// SPDX-License-Identifier: MIT
#include "dispatch/tally.h"

#include <cstdint>

#include "core/error.h"
#include "core/pair_count.h"

namespace tsp {

tsp_status_t check_tally(const tsp_context_t& ctx, const tsp_prefill_params_t& p) {
  if (p.tally == nullptr) return TSP_OK;
  if (reinterpret_cast<uintptr_t>(p.tally) % alignof(int64_t) != 0) {
    return fail(TSP_INVALID_ARGUMENT, "tally: must be aligned to 8 bytes, got %p",
                static_cast<void*>(p.tally));
  }
  const bool blocks = p.blocks.blocks != nullptr;
  if (ctx.ops->prefill != nullptr && (blocks || p.pattern.kind != TSP_PATTERN_NONE)) {
    return fail(TSP_UNSUPPORTED, "tally: must be null with %s: this backend does not count blocks",
                blocks ? "blocks" : "a pattern");
  }
  return TSP_OK;
}

void add_tally(const tsp_prefill_params_t& p, const tsp_attend_params_t& attend) {
  if (p.tally == nullptr) return;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    p.tally[0] += attend.selected.indices == nullptr ? seq.k_len : attend.selected.kept[b];
    p.tally[1] += computed_pairs(attend, seq);
  }
}

}  // namespace tsp
