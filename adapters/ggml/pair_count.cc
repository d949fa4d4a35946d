// SPDX-License-Identifier: MIT
#include "adapters/ggml/pair_count.h"

#include <algorithm>

namespace tsp::ggml_adapter {
namespace {

/// The sum over the positions p in [first, last) of min(p + 1, most).
double clipped_sum(int64_t first, int64_t last, int64_t most) {
  const auto sum_to = [most](int64_t end) {  // over [0, end)
    const int64_t rising = std::min(end, most);
    return 0.5 * static_cast<double>(rising) * static_cast<double>(rising + 1) +
           static_cast<double>(end - rising) * static_cast<double>(most);
  };
  return sum_to(last) - sum_to(first);
}

}  // namespace

double dense_pairs(int64_t rows, int64_t keys) { return clipped_sum(keys - rows, keys, keys); }

double computed_pairs(const tsp_prefill_params_t& params, int64_t rows, int64_t keys) {
  const tsp_index_sets_t& sets = params.selected;
  const int64_t kept = *sets.kept, first_row = keys - rows;
  if (kept >= keys) return dense_pairs(rows, keys);
  const bool local = params.dropped == TSP_DROPPED_LOCAL;
  const int64_t near = local ? int64_t{params.sink} + params.band : 0;
  double pairs = 0;
  for (int32_t set = 0; set < sets.num_sets; ++set) {
    const int32_t* indices = sets.indices + set * sets.set_stride;
    pairs += clipped_sum(first_row, keys, near);
    for (int64_t i = std::lower_bound(indices, indices + kept, first_row) - indices; i < kept;
         ++i) {
      pairs += static_cast<double>(i + 1 - std::min<int64_t>(indices[i] + 1, near));
    }
  }
  return pairs / sets.num_sets;
}

}  // namespace tsp::ggml_adapter
