// SPDX-License-Identifier: MIT
#include "dispatch/pattern_pays.h"

#include "core/pair_count.h"

namespace tsp {
namespace {

int32_t kept_tokens(const tsp_index_sets_t& sets, const Seq& seq) {
  return sets.indices == nullptr ? seq.k_len : sets.kept[seq.index];
}

}  // namespace

bool pattern_pays(const tsp_context_t& ctx, const tsp_prefill_params_t& p,
                  const tsp_attend_params_t& attend, bool estimated) {
  if (p.when == TSP_WHEN_ALWAYS || ctx.ops->pattern_pays == nullptr) return true;
  tsp_attend_params_t all = attend;
  all.blocks.blocks = nullptr;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    const double listed =
        estimated ? static_cast<double>(computed_pairs(attend, seq)) /
                        static_cast<double>(std::max<int64_t>(computed_pairs(all, seq), 1))
                  : -1;
    if (ctx.ops->pattern_pays(ctx, p, seq, kept_tokens(attend.selected, seq), listed)) return true;
  }
  return false;
}

}  // namespace tsp
