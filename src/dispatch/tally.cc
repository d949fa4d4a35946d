// SPDX-License-Identifier: MIT
#include "dispatch/tally.h"

#include <algorithm>
#include <cstdint>

#include "core/error.h"
#include "core/pairs.h"

namespace tsp {

tsp_status_t check_tally(const tsp_prefill_params_t& p) {
  if (p.tally == nullptr) return TSP_OK;
  if (reinterpret_cast<uintptr_t>(p.tally) % alignof(int64_t) != 0) {
    return fail(TSP_INVALID_ARGUMENT, "tally: must be aligned to 8 bytes, got %p",
                static_cast<void*>(p.tally));
  }
  if (p.blocks.blocks != nullptr || p.pattern.kind != TSP_PATTERN_NONE) {
    return fail(TSP_INVALID_ARGUMENT,
                "tally: must be null with %s: the pairs of blocks are not told",
                p.blocks.blocks != nullptr ? "blocks" : "a pattern");
  }
  return TSP_OK;
}

void add_tally(const tsp_prefill_params_t& p, const tsp_index_sets_t* sets) {
  if (p.tally == nullptr) return;
  const int64_t near = p.dropped == TSP_DROPPED_LOCAL ? int64_t{p.sink} + p.band : 0;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    const int32_t kept = sets == nullptr ? seq.k_len : sets->kept[b];
    p.tally[0] += kept;
    if (kept == seq.k_len) {
      p.tally[1] += p.q.heads * clipped_sum(seq.q_pos(), seq.k_len, seq.k_len);
      continue;
    }
    for (int32_t set = 0; set < sets->num_sets; ++set) {
      const int32_t* const list = set_indices(*sets, b, set);
      const int32_t* const first = std::lower_bound(list, list + kept, seq.q_pos());
      int64_t nearer = 0;
      const int32_t* far = first;
      for (; far < list + kept && *far < near; ++far) nearer += *far + 1;
      p.tally[1] +=
          p.q.heads / sets->num_sets *
          pairs_of_list(seq.q_pos(), seq.k_len, near, first - list, far - list, kept, nearer);
    }
  }
}

}  // namespace tsp
