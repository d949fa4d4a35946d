// SPDX-License-Identifier: MIT
// The kernels of a unit as a table.
#pragma once

#include "cpu/attend-inl.h"
#include "cpu/estimate-inl.h"
#include "cpu/score-inl.h"

namespace tsp::cpu {
namespace {

template <typename Arith>
constexpr Kernels attend_kernels() {
  return {kPanelKeys,
          kBlockKeys,
          k_panel_bytes<Arith>,
          v_row_bytes<Arith>,
          tile_scratch_bytes<Arith>,
          pack<Arith>,
          tile_begin<Arith>,
          tile_block<Arith>,
          tile_end<Arith>,
          score_scratch_bytes<Arith>,
          score_tile<Arith>,
          estimate_scratch_bytes<Arith>,
          softmax_rows<Arith>,
          add_row,
          sum_rows};
}

}  // namespace
}  // namespace tsp::cpu
