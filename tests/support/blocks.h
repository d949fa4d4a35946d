// SPDX-License-Identifier: MIT
// tsp_estimate() on a problem, and what its lists must be by a restatement from whole matrices of
// products in double, written without the library.
#pragma once

#include "tests/support/problem.h"

namespace tsp::test {

struct BlockLists {
  std::vector<std::vector<std::vector<std::vector<int32_t>>>> blocks;  // [b][set][query block]
  std::vector<std::vector<std::vector<int32_t>>> columns;              // [b][set]
  bool operator==(const BlockLists&) const = default;
  /// Blocks in one list and not in the other, as a share of those in either.
  double difference(const BlockLists& other) const;
};

/// Throws std::runtime_error with the sentence of a failed call.
BlockLists estimate(const Backend& backend, tokensparse::Context& ctx, Problem& problem,
                    const tsp_pattern_t& pattern, const Sets* sets = nullptr,
                    int32_t precision = TSP_PRECISION_F32);

class BlockOracle {
 public:
  explicit BlockOracle(const Problem& problem);
  BlockLists lists(const tsp_pattern_t& pattern, const Sets* sets = nullptr) const;
  const Problem& problem() const { return problem_; }
  /// scale * q . k, [query row][position].
  const std::vector<std::vector<double>>& products(size_t b, int32_t head) const {
    return products_[b][static_cast<size_t>(head)];
  }

 private:
  const Problem& problem_;
  std::vector<std::vector<std::vector<std::vector<double>>>> products_;
};
void PrintTo(const BlockLists& lists, std::ostream* out);

}  // namespace tsp::test
