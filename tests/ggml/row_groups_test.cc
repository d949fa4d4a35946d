// SPDX-License-Identifier: MIT
// The sequences that are read off a mask, against sets of visible cells written by hand.
#include "adapters/ggml/row_groups.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "ggml.h"

namespace tsp::ggml_adapter {
namespace {

constexpr ggml_fp16_t kVisible = 0x0000, kHidden = 0xFC00, kMinusOne = 0xBC00;

using Cells = std::vector<int32_t>;

Cells range(int32_t first, int32_t count) {
  Cells cells(static_cast<size_t>(count));
  std::iota(cells.begin(), cells.end(), first);
  return cells;
}

/// Rows that see sets of cells, one after the other.
class Mask {
 public:
  explicit Mask(int64_t n_kv) : n_kv_(n_kv) {}

  void add_row(const Cells& visible) {
    values_.resize(values_.size() + static_cast<size_t>(n_kv_), kHidden);
    for (const int32_t cell : visible) at(rows() - 1, cell) = kVisible;
  }
  /// `rows` rows: the first sees all of `cells` but the last rows - 1, each next one cell more.
  void add_causal(const Cells& cells, int32_t rows) {
    for (int32_t row = 0; row < rows; ++row) {
      add_row(Cells(cells.begin(), cells.end() - rows + 1 + row));
    }
  }
  int64_t rows() const { return static_cast<int64_t>(values_.size()) / n_kv_; }
  ggml_fp16_t& at(int64_t row, int64_t cell) {
    return values_[static_cast<size_t>(row * n_kv_ + cell)];
  }

  std::vector<RowGroup> read(int64_t streams = 1, int64_t stream = 0) {
    ggml_tensor tensor = {};
    tensor.ne[0] = n_kv_;
    tensor.ne[1] = rows() / streams;
    tensor.nb[0] = sizeof(ggml_fp16_t);
    tensor.nb[1] = static_cast<size_t>(n_kv_) * tensor.nb[0];
    tensor.nb[3] = static_cast<size_t>(tensor.ne[1]) * tensor.nb[1];
    tensor.data = values_.data();
    return read_row_groups(tensor, stream);
  }

 private:
  int64_t n_kv_;
  std::vector<ggml_fp16_t> values_;
};

Cells cells_of(const RowGroup& group) {
  return group.cells.empty() ? range(group.first_cell, group.k_len) : group.cells;
}

TEST(RowGroups, OneSequenceFromTheFirstCell) {
  Mask mask(256);
  mask.add_causal(range(0, 130), 64);
  const auto groups = mask.read();
  ASSERT_EQ(groups.size(), 1u);
  EXPECT_EQ(groups[0].num_rows, 64);
  EXPECT_EQ(groups[0].k_len, 130);
  EXPECT_TRUE(groups[0].cells.empty());
}

TEST(RowGroups, OneSequenceInTheMiddleNeedsNoList) {
  Mask mask(512);
  mask.add_causal(range(200, 130), 64);
  const auto groups = mask.read();
  ASSERT_EQ(groups.size(), 1u);
  EXPECT_EQ(groups[0].first_cell, 200);
  EXPECT_TRUE(groups[0].cells.empty());
  EXPECT_EQ(groups[0].k_len, 130);
}

TEST(RowGroups, SequencesSideBySideAndInterleaved) {
  Cells even = range(0, 100), odd = even;
  for (int32_t& cell : even) cell *= 2;
  for (int32_t& cell : odd) cell = cell * 2 + 1;
  Mask mask(512);
  mask.add_causal(even, 40);
  mask.add_causal(odd, 50);
  mask.add_causal(range(300, 64), 64);
  const auto groups = mask.read();
  ASSERT_EQ(groups.size(), 3u);
  EXPECT_EQ(cells_of(groups[0]), even);
  EXPECT_EQ(cells_of(groups[1]), odd);
  EXPECT_EQ(cells_of(groups[2]), range(300, 64));
  EXPECT_EQ(groups[1].first_row, 40);
  EXPECT_EQ(groups[1].num_rows, 50);
  EXPECT_EQ(groups[2].first_row, 90);
}

TEST(RowGroups, NewCellsBeforeOldOnes) {
  Cells cells = range(100, 80);                                    // what is there
  for (const int32_t cell : range(20, 64)) cells.push_back(cell);  // written into a hole
  Mask mask(256);
  mask.add_causal(cells, 64);
  const auto groups = mask.read();
  ASSERT_EQ(groups.size(), 1u);
  // Those of the first row ascending, then one a row.
  Cells expected{20};
  for (const int32_t cell : range(100, 80)) expected.push_back(cell);
  for (const int32_t cell : range(21, 63)) expected.push_back(cell);
  EXPECT_EQ(groups[0].cells, expected);
}

TEST(RowGroups, ADecodingRowBesideAPrompt) {
  Mask mask(512);
  mask.add_causal(range(400, 90), 1);
  mask.add_causal(range(0, 80), 63);
  const auto groups = mask.read();
  ASSERT_EQ(groups.size(), 2u);
  EXPECT_EQ(groups[0].num_rows, 1);
  EXPECT_EQ(groups[0].k_len, 90);
  EXPECT_EQ(groups[1].num_rows, 63);
}

TEST(RowGroups, EachStreamHasItsOwn) {
  Mask mask(256);
  mask.add_causal(range(0, 64), 64);
  mask.add_causal(range(3, 100), 64);
  const auto first = mask.read(2, 0), second = mask.read(2, 1);
  ASSERT_EQ(first.size(), 1u);
  ASSERT_EQ(second.size(), 1u);
  EXPECT_EQ(first[0].k_len, 64);
  EXPECT_EQ(cells_of(second[0]), range(3, 100));
}

TEST(RowGroups, NoneWhereTheMaskIsOfAnotherKind) {
  Mask sliding(256), both_ways(256), short_sequences(512), empty(256), biased(256);
  for (int32_t row = 0; row < 64; ++row) {
    sliding.add_row(range(row, 30));
    both_ways.add_row(range(0, 64));
    short_sequences.add_row(range(8 * row, 1));
    empty.add_row({});
  }
  biased.add_causal(range(5, 100), 64);
  biased.at(0, 7) = kMinusOne;
  EXPECT_TRUE(sliding.read().empty());
  EXPECT_TRUE(both_ways.read().empty());
  EXPECT_TRUE(short_sequences.read().empty());
  EXPECT_TRUE(empty.read().empty());
  EXPECT_TRUE(biased.read().empty());
  biased.at(0, 7) = kVisible;
  biased.at(60, 7) = kMinusOne;
  EXPECT_TRUE(biased.read().size() != 1) << "an entry that changes twice is no growing set";
}

}  // namespace
}  // namespace tsp::ggml_adapter
