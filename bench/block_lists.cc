// SPDX-License-Identifier: MIT
#include "bench/block_lists.h"

#include <algorithm>
#include <random>

namespace tsp::bench {

BlockLists::BlockLists(const Shape& s, const Sets* sets, double share)
    : num_sets_(static_cast<int32_t>(s.heads)),
      rows_(s.q_tokens / kBlock + 1),
      row_stride_(s.tokens / kBlock + 1),
      blocks_(static_cast<size_t>(num_sets_ * rows_ * row_stride_)),
      counts_(static_cast<size_t>(num_sets_ * rows_)) {
  std::mt19937 generator(1);
  for (int32_t head = 0; head < num_sets_; ++head) {
    int64_t count = s.tokens, first = s.tokens - s.q_tokens;
    if (sets != nullptr) {
      const int32_t set = head / (num_sets_ / sets->num_sets);
      const int32_t* const list = &sets->indices[static_cast<size_t>(set * s.tokens)];
      count = sets->kept;
      first = std::lower_bound(list, list + count, first) - list;
    }
    for (int64_t m = 0; first + m * kBlock < count; ++m) {
      const int64_t begin = first + m * kBlock;
      const int64_t last = (std::min(begin + kBlock, count) - 1) / kBlock;
      int32_t* const list = &blocks_[row(head, m) * static_cast<size_t>(row_stride_)];
      int32_t& listed = counts_[row(head, m)];
      for (int64_t n = 0; n <= last; ++n) {
        const double drawn = static_cast<double>(generator()) * 0x1p-32;
        if (n >= begin / kBlock || drawn < share) list[listed++] = static_cast<int32_t>(n);
      }
    }
  }
}

tsp_block_sets_t BlockLists::view() {
  tsp_block_sets_t v{};
  v.blocks = blocks_.data();
  v.counts = counts_.data();
  v.block = kBlock;
  v.num_sets = num_sets_;
  v.row_stride = row_stride_;
  v.set_stride = rows_ * row_stride_;
  v.seq_stride = v.set_stride * num_sets_;
  v.count_set_stride = rows_;
  v.count_seq_stride = rows_ * num_sets_;
  return v;
}

int64_t BlockLists::keys_of(int32_t head, int64_t entry, int64_t first) const {
  const size_t at = row(head, (entry - first) / kBlock);
  const int32_t* const list = &blocks_[at * static_cast<size_t>(row_stride_)];
  int64_t keys = 0;
  for (int32_t n = 0; n < counts_[at]; ++n) {
    keys += std::clamp<int64_t>(entry + 1 - list[n] * kBlock, 0, kBlock);
  }
  return keys;
}

}  // namespace tsp::bench
