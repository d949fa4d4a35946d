// SPDX-License-Identifier: MIT
// What prefill is made of: its options as those of score, select and attend. Where scores, sets and
// workspace lie is the composer's business and left empty.
#pragma once

#include "core/layout.h"
#include "tokensparse/tokensparse.h"

namespace tsp {

/// A look before the choice (dispatch/pilot.h): so many of the window's last queries, and about so
/// many stretches of so many keys.
inline constexpr int32_t kPilotRows = 24;
inline constexpr int32_t kPilotStretches = 24;
inline constexpr int32_t kPilotStretch = 64;

/// Nothing of the sequence can be dropped, whatever its scores are.
inline bool is_dense(const Seq& seq, int32_t window, int32_t min_tokens, float coverage,
                     float keep) {
  return (keep == 0 && coverage == 0) || seq.k_len <= int64_t{min_tokens} + seq.window(window);
}
inline bool is_dense(const tsp_prefill_params_t& p, const Seq& seq) {
  return is_dense(seq, p.window, p.min_tokens, p.coverage, p.keep);
}

inline tsp_score_params_t score_part(const tsp_prefill_params_t& p) {
  tsp_score_params_t s{};
  s.struct_size = sizeof s;
  s.window = p.window;
  s.pool = p.pool;
  s.scale = p.scale;
  s.precision = p.precision;
  s.q = p.q;
  s.k = p.k;
  s.batch = p.batch;
  return s;
}

inline tsp_select_params_t select_part(const tsp_prefill_params_t& p) {
  tsp_select_params_t s{};
  s.struct_size = sizeof s;
  s.window = p.window;
  s.min_tokens = p.min_tokens;
  s.share = p.share;
  s.coverage = p.coverage;
  s.keep = p.keep;
  s.num_kv_heads = static_cast<int32_t>(p.k.heads);
  s.batch = p.batch;
  return s;
}

inline tsp_attend_params_t attend_part(const tsp_prefill_params_t& p) {
  tsp_attend_params_t a{};
  a.struct_size = sizeof a;
  a.scale = p.scale;
  a.dropped = p.dropped;
  a.band = p.band;
  a.sink = p.sink;
  a.precision = p.precision;
  a.q = p.q;
  a.k = p.k;
  a.v = p.v;
  a.out = p.out;
  a.lse = p.lse;
  a.batch = p.batch;
  a.blocks = p.blocks;
  return a;
}

/// Of a pattern that is not none.
inline tsp_estimate_params_t estimate_part(const tsp_prefill_params_t& p) {
  tsp_estimate_params_t e{};
  e.struct_size = sizeof e;
  e.scale = p.scale;
  e.precision = p.precision;
  e.pattern = p.pattern;
  e.q = p.q;
  e.k = p.k;
  e.batch = p.batch;
  return e;
}

}  // namespace tsp
