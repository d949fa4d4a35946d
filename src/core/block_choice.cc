// SPDX-License-Identifier: MIT
#include "core/block_choice.h"

#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

namespace tsp {
namespace {

constexpr int32_t kFirstColumns = 30;  // of minference, always in
constexpr int32_t kNearSlashes = 100;
constexpr int32_t kLeastSlashes = 50;

int32_t ceil_log2(int64_t n) {
  return n <= 1 ? 0 : static_cast<int32_t>(std::bit_width(static_cast<uint64_t>(n - 1)));
}

/// NaN, infinities and what no mean of softmax rows can be.
bool rankable(const float* mass, int64_t n) {
  bool good = true;
  for (int64_t i = 0; i < n; ++i) good = good && mass[i] >= 0 && mass[i] <= 2;
  return good;
}

/// Mass in fixed point; returns the total.
uint64_t to_units(const float* mass, int64_t n, uint64_t* units) {
  const float unit = std::ldexp(1.0f, 61 - ceil_log2(n));
  uint64_t total = 0;
  for (int64_t i = 0; i < n; ++i) total += units[i] = static_cast<uint64_t>(mass[i] * unit);
  return total;
}

uint64_t share_of(float share, uint64_t total) {
  return static_cast<uint64_t>(std::ceil(static_cast<double>(share) * static_cast<double>(total)));
}

/// Indices in descending order of mass, ties to the lower index: the first `sorted` of them.
void rank(const uint64_t* mass, int32_t* order, int64_t n, int64_t sorted) {
  std::iota(order, order + n, 0);
  const auto before = [mass](int32_t x, int32_t y) {
    return mass[x] != mass[y] ? mass[x] > mass[y] : x < y;
  };
  if (sorted < n) std::nth_element(order, order + sorted, order + n, before);
  std::sort(order, order + std::min(sorted, n), before);
}
/// The `count` largest, in no order.
void rank_set(const uint64_t* mass, int32_t* order, int64_t n, int64_t count) {
  std::iota(order, order + n, 0);
  if (count >= n) return;
  std::nth_element(order, order + count, order + n, [mass](int32_t x, int32_t y) {
    return mass[x] != mass[y] ? mass[x] > mass[y] : x < y;
  });
}

/// False: the query block reads everything anyway.
bool mark_always(const tsp_pattern_t& p, const BlockRows& rows, int32_t m, uint8_t* in) {
  const int32_t visible = rows.visible(m);
  if (m >= int64_t{rows.num_query_blocks()} - p.last_blocks) return false;
  std::fill_n(in, std::min(p.sink_blocks, visible), uint8_t{1});
  const int32_t first =
      static_cast<int32_t>(std::max<int64_t>(0, int64_t{rows.diagonal(m)} - p.local_blocks));
  std::fill_n(in + first, visible - first, uint8_t{1});
  return true;
}

/// Adds the strongest to what is marked until the mass of all is at least the threshold's.
void mark_to_threshold(float threshold, int32_t n, uint64_t total, const ChoiceScratch& s) {
  const uint64_t limit = share_of(threshold, total);
  uint64_t sum = 0;
  for (int32_t i = 0; i < n; ++i) sum += s.in[i] != 0 ? s.mass[i] : 0;
  if (sum >= limit) return;
  rank(s.mass, s.order, n, n);
  for (int32_t i = 0; i < n && sum < limit; ++i) {
    const int32_t block = s.order[i];
    if (s.in[block] != 0) continue;
    s.in[block] = 1;
    sum += s.mass[block];
  }
}

/// How many of the strongest values it takes to have more than gamma of the mass.
int32_t count_to_cover(const float* mass, int32_t n, float gamma, const ChoiceScratch& s) {
  const uint64_t total = to_units(mass, n, s.mass);
  const auto limit =
      static_cast<uint64_t>(std::floor(static_cast<double>(gamma) * static_cast<double>(total)));
  // Halves of the strongest, as far as they are needed: sorting all of it was 30 % of an estimate
  // on the CPU (8,192 tokens, 7 heads of D 64, 2 cores AMD EPYC Zen 5, 2026-11-27).
  uint64_t sum = 0;  // of those before `first`
  int32_t first = 0, last = n;
  while (last - first > 1) {
    const int32_t middle = first + (last - first) / 2;
    std::nth_element(s.mass + first, s.mass + middle, s.mass + last, std::greater<>());
    const uint64_t upper = std::accumulate(s.mass + first, s.mass + middle, uint64_t{0});
    if (sum + upper > limit) {
      last = middle;
    } else {
      sum += upper;
      first = middle;
    }
  }
  return first + 1;
}

/// out[i] = sum of the mass of block i, entries ascending, in f32.
void sum_blocks(const float* mass, int32_t n, int32_t block, float* out) {
  for (int32_t i = 0; i < n; i += block) {
    float sum = 0;
    for (int32_t j = i; j < std::min(i + block, n); ++j) sum += mass[j];
    out[i / block] = sum;
  }
}

/// Marks slash block o: for every query block, what lies o blocks before its own.
void mark_slash_block(const BlockRows& rows, int32_t o, uint8_t* marks) {
  const int32_t stride = rows.num_key_blocks();
  for (int32_t m = 0; m < rows.num_query_blocks(); ++m) {
    for (const int32_t n : {rows.diagonal(m) - o, rows.visible(m) - 1 - o}) {
      if (n >= 0) marks[int64_t{m} * stride + n] = 1;
    }
  }
}

/// The strongest blocks of one kind of line; the first block always.
void mark_line_blocks(const BlockRows& rows, const float* mass, int32_t count, bool slash,
                      const ChoiceScratch& s, uint8_t* marks) {
  const int32_t n = rows.num_key_blocks();
  float* const sums = s.sums;
  sum_blocks(mass, rows.count, rows.block, sums);
  to_units(sums, n, s.mass);
  s.mass[0] = std::numeric_limits<uint64_t>::max();
  rank_set(s.mass, s.order, n, count);
  for (int32_t i = 0; i < std::min(count, n); ++i) {
    if (slash) {
      mark_slash_block(rows, s.order[i], marks);
      continue;
    }
    for (int32_t m = 0; m < rows.num_query_blocks(); ++m) {
      if (s.order[i] < rows.visible(m)) marks[int64_t{m} * n + s.order[i]] = 1;
    }
  }
}

int32_t in_blocks(int64_t entries, int32_t block) {
  return static_cast<int32_t>((entries + block - 1) / block);
}

/// The strongest pooled blocks of all query blocks, while their mass stays within gamma.
void mark_pooled(const tsp_pattern_t& p, const BlockRows& rows, const PooledRows& pooled,
                 const ChoiceScratch& s, uint8_t* marks) {
  const int32_t stride = rows.num_key_blocks();
  const int64_t n = int64_t{stride} * rows.num_query_blocks();
  const float unit = std::ldexp(1.0f, 61 - ceil_log2(n));
  uint64_t total = 0;
  for (int32_t m = 0; m < rows.num_query_blocks(); ++m) {
    for (int32_t i = 0; i < stride; ++i) {
      const float mass = i < rows.visible(m) ? pooled.mass[m * pooled.row_stride + i] : 0.0f;
      total += s.mass[int64_t{m} * stride + i] = static_cast<uint64_t>(mass * unit);
    }
  }
  const auto limit =
      static_cast<uint64_t>(std::floor(static_cast<double>(p.gamma) * static_cast<double>(total)));
  rank(s.mass, s.order, n, n);
  uint64_t sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    sum += s.mass[s.order[i]];
    if (sum > limit) break;
    if (s.order[i] % stride < rows.visible(s.order[i] / stride)) marks[s.order[i]] = 1;
  }
}

void write_marks(const tsp_pattern_t& p, const BlockRows& rows, uint8_t* marks,
                 const BlockWriter& out) {
  for (int32_t m = 0; m < rows.num_query_blocks(); ++m) {
    uint8_t* const row = marks + int64_t{m} * rows.num_key_blocks();
    out.write(m, rows.visible(m), mark_always(p, rows, m, row) ? row : nullptr);
  }
}

}  // namespace

BlockWriter::BlockWriter(const tsp_block_sets_t& s, int32_t b, int32_t set)
    : blocks_(s.blocks + b * s.seq_stride + set * s.set_stride),
      counts_(s.counts + b * s.count_seq_stride + set * s.count_set_stride),
      columns_(s.columns == nullptr
                   ? nullptr
                   : s.columns + b * s.column_seq_stride + set * s.column_set_stride),
      num_columns_(s.columns == nullptr ? nullptr : s.num_columns + int64_t{b} * s.num_sets + set),
      row_stride_(s.row_stride) {
  if (num_columns_ != nullptr) *num_columns_ = 0;
}

void BlockWriter::write(int32_t m, int32_t visible, const uint8_t* in) const {
  int32_t* const row = blocks_ + m * row_stride_;
  int32_t count = 0;
  for (int32_t n = 0; n < visible; ++n) {
    if (in == nullptr || in[n] != 0) row[count++] = n;
  }
  counts_[m] = count;
}

void BlockWriter::write_columns(const uint8_t* in, int32_t num_entries) const {
  if (columns_ == nullptr) return;
  int32_t count = 0;
  for (int32_t t = 0; t < num_entries; ++t) {
    if (in[t] != 0) columns_[count++] = t;
  }
  *num_columns_ = count;
}

void BlockWriter::write_everything(const BlockRows& rows) const {
  for (int32_t m = 0; m < rows.num_query_blocks(); ++m) write(m, rows.visible(m), nullptr);
}

void choose_row(const tsp_pattern_t& p, float threshold, const BlockRows& rows, int32_t m,
                const float* mass, const ChoiceScratch& s, const BlockWriter& out) {
  const int32_t n = rows.visible(m);
  const bool flash = p.kind == TSP_PATTERN_FLASH;
  std::fill_n(s.in, n, uint8_t{0});
  if (!mark_always(p, rows, m, s.in) || !rankable(mass, n) ||
      (flash ? p.alpha <= 0 : threshold >= 1)) {
    out.write(m, n, nullptr);
    return;
  }
  const uint64_t total = to_units(mass, n, s.mass);
  if (flash) {
    const uint64_t limit = share_of(p.alpha, *std::max_element(s.mass, s.mass + n));
    for (int32_t i = 0; i < n; ++i) s.in[i] = s.in[i] != 0 || s.mass[i] >= limit ? 1 : 0;
  } else {
    mark_to_threshold(threshold, n, total, s);
  }
  out.write(m, n, s.in);
}

void choose_vertical_slash(const tsp_pattern_t& p, const BlockRows& rows, const Lines& lines,
                           const ChoiceScratch& s, const BlockWriter& out) {
  const int32_t n = rows.count;
  if (!rankable(lines.columns, n) || !rankable(lines.slashes, n)) {
    out.write_everything(rows);
    return;
  }
  const auto mark = [&](const float* mass, int32_t wanted, int32_t forced) {
    to_units(mass, n, s.mass);
    std::fill_n(s.mass, std::min(forced, n), std::numeric_limits<uint64_t>::max());
    const int32_t count = std::min(wanted, n);
    rank_set(s.mass, s.order, n, count);
    std::fill_n(s.in, n, uint8_t{0});
    for (int32_t i = 0; i < count; ++i) s.in[s.order[i]] = 1;
  };
  mark(lines.columns, std::max(p.vertical, kFirstColumns), kFirstColumns);
  out.write_columns(s.in, n);
  mark(lines.slashes, std::max(p.slash, kLeastSlashes), kNearSlashes);
  // s.mass is free now: a row of marks.
  auto* const row = reinterpret_cast<uint8_t*>(s.mass);
  for (int32_t m = 0; m < rows.num_query_blocks(); ++m) {
    std::fill_n(row, rows.visible(m), uint8_t{0});
    if (!mark_always(p, rows, m, row)) {
      out.write(m, rows.visible(m), nullptr);
      continue;
    }
    const int32_t first = rows.first_entry(m);
    const int32_t last = rows.last_entry(m);
    for (int32_t d = 0; d <= last; ++d) {
      if (s.in[d] == 0) continue;
      row[std::max(first - d, 0) / rows.block] = 1;
      row[(last - d) / rows.block] = 1;
    }
    out.write(m, rows.visible(m), row);
  }
}

bool pooled_fits(const tsp_pattern_t& p, const BlockRows& rows, const Lines& lines,
                 const float* guess) {
  const int32_t n = rows.num_key_blocks();
  if (!rankable(lines.columns, rows.count) || !rankable(guess, n)) return false;
  double divergence = 0;
  for (int32_t i = 0; i < n; ++i) {
    float found = 0;
    sum_blocks(lines.columns + i * rows.block, std::min(rows.block, rows.count - i * rows.block),
               rows.block, &found);
    const double mean = (static_cast<double>(found) + static_cast<double>(guess[i])) / 2;
    // 0 log 0 = 0: an underflowed weight says nothing, and must not make the whole a NaN.
    for (const double x : {static_cast<double>(found), static_cast<double>(guess[i])}) {
      if (x > 0) divergence += 0.5 * x * std::log(x / mean);
    }
  }
  return std::sqrt(std::max(divergence, 0.0)) < static_cast<double>(p.tau);
}

void choose_flexprefill(const tsp_pattern_t& p, const BlockRows& rows, const Lines& lines,
                        const PooledRows& pooled, const ChoiceScratch& s, uint8_t* marks,
                        const BlockWriter& out) {
  const int32_t n = rows.count;
  const int32_t blocks = rows.num_key_blocks();
  bool good = rankable(lines.columns, n) && rankable(lines.slashes, n);
  for (int32_t m = 0; pooled.mass != nullptr && m < rows.num_query_blocks(); ++m) {
    good = good && rankable(pooled.mass + m * pooled.row_stride, rows.visible(m));
  }
  if (!good) {
    out.write_everything(rows);
    return;
  }
  std::fill_n(marks, int64_t{blocks} * rows.num_query_blocks(), uint8_t{0});
  const int32_t least = std::max(1, in_blocks(p.min_budget, p.block));
  const auto count = [&](const float* mass) {
    if (pooled.mass != nullptr) return least;
    return std::max(least, count_to_cover(mass, n, p.gamma, s) / p.block + 1);
  };
  const int32_t columns = count(lines.columns);
  const int32_t slashes = count(lines.slashes);
  mark_line_blocks(rows, lines.columns, columns, false, s, marks);
  mark_line_blocks(rows, lines.slashes, slashes, true, s, marks);
  if (pooled.mass != nullptr) mark_pooled(p, rows, pooled, s, marks);
  write_marks(p, rows, marks, out);
}

bool reads_everything(const tsp_pattern_t& p, const BlockRows& rows) {
  if (p.kind != TSP_PATTERN_FLEXPREFILL) return false;
  const int64_t budget = int64_t{in_blocks(p.min_budget, p.block)} * p.block;
  return p.gamma >= 1 || rows.count <= std::max<int64_t>(2 * p.block, budget);
}

}  // namespace tsp
