// SPDX-License-Identifier: MIT
// Block sets to measure with: key blocks drawn at random, which is the hardest case (real ones come
// in runs, which are walked over as one span).
#pragma once

#include "bench/shape.h"

namespace tsp::bench {

/// Of the entries of `sets` (null: of positions), a list for each head: each key block with the
/// chance `share`, those on the diagonal always.
class BlockLists {
 public:
  static constexpr int32_t kBlock = 128;
  BlockLists(const Shape& shape, const Sets* sets, double share);
  /// The lists in host memory.
  tsp_block_sets_t view();
  /// Keys that the query at entry i of a head reads; `first` is the head's first query.
  int64_t keys_of(int32_t head, int64_t entry, int64_t first) const;

 private:
  size_t row(int32_t head, int64_t m) const { return static_cast<size_t>(head * rows_ + m); }

  int32_t num_sets_;
  int64_t rows_;        // query blocks of a head, room for
  int64_t row_stride_;  // key blocks of a query block, room for
  std::vector<int32_t> blocks_, counts_;
};

}  // namespace tsp::bench
