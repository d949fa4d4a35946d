// SPDX-License-Identifier: MIT
// A look before the choice: what coverage would keep, guessed from some of the window's queries and
// a sample of the keys, for a small part of what scoring all of them costs (TSP_WHEN_PAYS).
#pragma once

#include "core/context.h"
#include "core/layout.h"
#include "core/op_table.h"
#include "core/workspace.h"

namespace tsp {

/// Memory of a pilot, for one sequence after the other.
struct Pilot {
  int32_t* blocks;             // the sample's, as a block table
  float* scores;               // [heads, sample's prefix]
  struct PilotToken* entries;  // tokens of the sample
  size_t score_bytes;          // of score's workspace
};

/// Whether there is anything to guess: a fixed share says beforehand what it keeps.
inline bool wants_pilot(const tsp_context_t& ctx, const tsp_prefill_params_t& p) {
  return p.when == TSP_WHEN_PAYS && ctx.ops->prefill_pays != nullptr &&
         p.given.indices == nullptr && p.keep == 0 && p.coverage > 0;
}

Pilot make_pilot(const tsp_context_t& ctx, const tsp_prefill_params_t& p, Workspace<>& workspace);

/// Of a sequence that is not dense. `score_workspace`: pilot.score_bytes.
tsp_status_t guess_kept(tsp_context_t& ctx, const tsp_prefill_params_t& p, const Seq& seq,
                        const Pilot& pilot, void* score_workspace, int32_t* kept);

}  // namespace tsp
