// SPDX-License-Identifier: MIT
#include "tests/support/blocks.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <set>
#include <stdexcept>

#include "tests/support/allocations.h"

namespace tsp::test {
namespace {

using Row = std::vector<double>;
using Matrix = std::vector<Row>;
using Chosen = std::vector<std::set<int32_t>>;  // [query block]

constexpr double kInf = std::numeric_limits<double>::infinity();

int32_t num_sets_of(int32_t share, const Shape& s) {
  return static_cast<int32_t>(share == TSP_SHARE_HEAD       ? s.num_q_heads
                              : share == TSP_SHARE_KV_GROUP ? s.num_kv_heads
                                                            : 1);
}

void softmax(Row& row) {
  const double max = *std::max_element(row.begin(), row.end());
  double sum = 0;
  for (double& x : row) sum += x = std::exp(x - max);
  for (double& x : row) x /= sum;
}

/// Indices by descending value, ties to the lower.
std::vector<int32_t> ranking(const Row& values) {
  std::vector<int32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t x, int32_t y) {
    return values[static_cast<size_t>(x)] > values[static_cast<size_t>(y)];
  });
  return order;
}

/// One block set of one sequence.
class Restated {
 public:
  Restated(const BlockOracle& oracle, const tsp_pattern_t& pattern, size_t b, int32_t set,
           std::vector<int32_t> entries)
      : oracle_(oracle),
        problem_(oracle.problem()),
        p_(pattern),
        b_(b),
        entries_(std::move(entries)) {
    const Shape& shape = problem_.shape;
    const int32_t first = shape.k_lens[b] - shape.q_lens[b];
    e0_ = static_cast<int32_t>(std::lower_bound(entries_.begin(), entries_.end(), first) -
                               entries_.begin());
    const auto sets = num_sets_of(pattern.share, shape);
    heads_ = static_cast<int32_t>(shape.num_q_heads) / sets;
    first_head_ = set * heads_;
    threshold_ = pattern.thresholds == nullptr ? pattern.threshold : pattern.thresholds[set];
  }
  int32_t n() const { return static_cast<int32_t>(entries_.size()); }
  int32_t rows() const { return n() - e0_; }
  int32_t query_blocks() const { return (rows() + p_.block - 1) / p_.block; }
  int32_t key_blocks() const { return (n() + p_.block - 1) / p_.block; }
  int32_t begin(int32_t m) const { return e0_ + m * p_.block; }
  int32_t end(int32_t m) const { return std::min(begin(m) + p_.block, n()); }
  int32_t visible(int32_t m) const { return (end(m) - 1) / p_.block + 1; }

  void run(Chosen* chosen, std::vector<int32_t>* columns) {
    chosen->assign(static_cast<size_t>(query_blocks()), {});
    if (rows() == 0) return;
    if (p_.kind == TSP_PATTERN_MINFERENCE) {
      vertical_slash(*chosen, *columns);
    } else if (p_.kind == TSP_PATTERN_FLEXPREFILL) {
      flexprefill(*chosen);
    } else {
      const Matrix mass = masses();
      for (int32_t m = 0; m < query_blocks(); ++m) {
        choose(mass[static_cast<size_t>(m)], m, (*chosen)[static_cast<size_t>(m)]);
      }
    }
    for (int32_t m = 0; m < query_blocks(); ++m) always(m, (*chosen)[static_cast<size_t>(m)]);
  }

 private:
  /// scale * q . k of every query entry with every entry.
  Matrix products(int32_t head) const {
    const Matrix& whole = oracle_.products(b_, head);
    const int32_t first = problem_.shape.k_lens[b_] - problem_.shape.q_lens[b_];
    Matrix all(static_cast<size_t>(rows()), Row(static_cast<size_t>(n())));
    for (int32_t i = 0; i < rows(); ++i) {
      const Row& row = whole[static_cast<size_t>(entries_[static_cast<size_t>(e0_ + i)] - first)];
      for (size_t j = 0; j < entries_.size(); ++j) {
        all[static_cast<size_t>(i)][j] = row[static_cast<size_t>(entries_[j])];
      }
    }
    return all;
  }
  static double cell(const Matrix& x, int32_t i, int32_t j) {
    return x[static_cast<size_t>(i)][static_cast<size_t>(j)];
  }
  /// Mean of x over rows i0 .. i1 - 1 and the entries of block n.
  double mean(const Matrix& x, int32_t i0, int32_t i1, int32_t block) const {
    const int32_t j0 = block * p_.block;
    const int32_t j1 = std::min(j0 + p_.block, n());
    double sum = 0;
    for (int32_t i = i0; i < i1; ++i) {
      for (int32_t j = j0; j < j1; ++j) sum += cell(x, i, j);
    }
    return sum / ((i1 - i0) * (j1 - j0));
  }
  Row pooled_row(const Matrix& x, int32_t i0, int32_t i1, int32_t blocks) const {
    Row row;
    for (int32_t block = 0; block < blocks; ++block) row.push_back(mean(x, i0, i1, block));
    softmax(row);
    return row;
  }
  Row antidiagonal_row(const Matrix& x, int32_t m) const {
    const int32_t s = p_.stride;
    Row mass(static_cast<size_t>(visible(m)));
    int32_t groups = 0;
    for (int32_t e = begin(m); e < end(m); e += s, ++groups) {
      const int32_t last = std::min(e + s, end(m)) - 1;
      Row row;
      for (int32_t j = 0; j * s <= last; ++j) {
        double sum = 0;
        for (int32_t a = 0; a < s; ++a) {
          for (int32_t c = 0; c < s; ++c) {
            if (a + c == s - 1 && e + a <= last && j * s + c < n()) {
              sum += cell(x, e + a - e0_, j * s + c);
            }
          }
        }
        row.push_back(sum / s);
      }
      softmax(row);
      for (size_t j = 0; j < row.size(); ++j) {
        mass[j * static_cast<size_t>(s) / static_cast<size_t>(p_.block)] += row[j];
      }
    }
    for (double& value : mass) value /= groups;
    return mass;
  }
  Row mass_row(const Matrix& x, int32_t m) const {
    if (p_.kind == TSP_PATTERN_XATTENTION) return antidiagonal_row(x, m);
    const int32_t i0 = begin(m) - e0_;
    const int32_t i1 = end(m) - e0_;
    if (p_.kind != TSP_PATTERN_FLASH) return pooled_row(x, i0, i1, visible(m));
    Row pairs;
    std::vector<size_t> block_of;
    for (int32_t i = i0; i < i1; ++i) {
      for (int32_t c = 0; (c + 1) * p_.block <= e0_ + i + 1; ++c) {
        pairs.push_back(mean(x, i, i + 1, c));
        block_of.push_back(static_cast<size_t>(c));
      }
    }
    Row mass(static_cast<size_t>(visible(m)));
    if (!pairs.empty()) softmax(pairs);
    for (size_t at = 0; at < pairs.size(); ++at) mass[block_of[at]] += pairs[at];
    return mass;
  }
  static void add(Row& to, const Row& row, int32_t heads) {
    to.resize(row.size());
    for (size_t i = 0; i < row.size(); ++i) to[i] += row[i] / heads;
  }
  Matrix masses() const {
    Matrix mass(static_cast<size_t>(query_blocks()));
    for (int32_t h = 0; h < heads_; ++h) {
      const Matrix x = products(first_head_ + h);
      for (int32_t m = 0; m < query_blocks(); ++m) {
        add(mass[static_cast<size_t>(m)], mass_row(x, m), heads_);
      }
    }
    return mass;
  }
  void always(int32_t m, std::set<int32_t>& in) const {
    for (int32_t c = 0; c < visible(m); ++c) {
      if (c < p_.sink_blocks || c >= begin(m) / p_.block - p_.local_blocks ||
          m >= query_blocks() - p_.last_blocks) {
        in.insert(c);
      }
    }
  }
  void choose(const Row& mass, int32_t m, std::set<int32_t>& in) const {
    if (p_.kind == TSP_PATTERN_FLASH) {
      const double limit =
          static_cast<double>(p_.alpha) * *std::max_element(mass.begin(), mass.end());
      for (int32_t c = 0; c < visible(m); ++c) {
        if (mass[static_cast<size_t>(c)] >= limit) in.insert(c);
      }
      return;
    }
    always(m, in);
    double sum = 0;
    for (const int32_t c : in) sum += mass[static_cast<size_t>(c)];
    const double total = std::accumulate(mass.begin(), mass.end(), 0.0);
    for (const int32_t c : ranking(mass)) {
      if (threshold_ < 1 && sum >= static_cast<double>(threshold_) * total) break;
      if (in.insert(c).second) sum += mass[static_cast<size_t>(c)];
    }
  }
  void lines(int32_t count, Row& columns, Row& slashes) const {
    columns.assign(static_cast<size_t>(n()), 0);
    slashes.assign(static_cast<size_t>(n()), 0);
    for (int32_t h = 0; h < heads_; ++h) {
      const Matrix x = products(first_head_ + h);
      for (int32_t e = n() - count; e < n(); ++e) {
        Row row(x[static_cast<size_t>(e - e0_)].begin(),
                x[static_cast<size_t>(e - e0_)].begin() + e + 1);
        softmax(row);
        for (int32_t t = 0; t <= e; ++t) {
          columns[static_cast<size_t>(t)] += row[static_cast<size_t>(t)] / count / heads_;
          slashes[static_cast<size_t>(e - t)] += row[static_cast<size_t>(t)] / count / heads_;
        }
      }
    }
  }
  std::set<int32_t> strongest(Row values, int32_t count, int32_t first) const {
    std::fill_n(values.begin(), std::min<size_t>(static_cast<size_t>(first), values.size()), kInf);
    const std::vector<int32_t> order = ranking(values);
    return {order.begin(), order.begin() + std::min(count, static_cast<int32_t>(order.size()))};
  }
  void vertical_slash(Chosen& chosen, std::vector<int32_t>& columns) const {
    Row column, slash;
    lines(std::min(64, rows()), column, slash);
    const std::set<int32_t> kept = strongest(column, std::max(p_.vertical, 30), 30);
    columns.assign(kept.begin(), kept.end());
    for (const int32_t d : strongest(slash, std::max(p_.slash, 50), 100)) {
      for (int32_t e = e0_; e < n(); ++e) {
        if (e >= d) chosen[static_cast<size_t>((e - e0_) / p_.block)].insert((e - d) / p_.block);
      }
    }
  }
  Row by_block(const Row& values) const {
    Row sums(static_cast<size_t>(key_blocks()));
    for (int32_t t = 0; t < n(); ++t) {
      sums[static_cast<size_t>(t / p_.block)] += values[static_cast<size_t>(t)];
    }
    return sums;
  }
  int32_t blocks_to_cover(Row values, int32_t least) const {
    std::sort(values.rbegin(), values.rend());
    int32_t count = 0;
    double sum = 0;
    while (count < n() &&
           (sum += values[static_cast<size_t>(count)]) <= static_cast<double>(p_.gamma)) {
      ++count;
    }
    return std::max(least, (count + 1) / p_.block + 1);
  }
  void flexprefill(Chosen& chosen) {
    const int32_t budget = (p_.min_budget + p_.block - 1) / p_.block;
    if (p_.gamma >= 1 || n() <= std::max(2 * p_.block, budget * p_.block)) {
      for (int32_t m = 0; m < query_blocks(); ++m) {
        for (int32_t c = 0; c < visible(m); ++c) chosen[static_cast<size_t>(m)].insert(c);
      }
      return;
    }
    Row column, slash, guess;
    const int32_t count = std::min(p_.block, rows());
    lines(count, column, slash);
    for (int32_t h = 0; h < heads_; ++h) {
      add(guess, pooled_row(products(first_head_ + h), rows() - count, rows(), key_blocks()),
          heads_);
    }
    const Row found = by_block(column);
    double divergence = 0;
    for (size_t c = 0; c < guess.size(); ++c) {
      const double mid = (guess[c] + found[c]) / 2;
      if (guess[c] > 0) divergence += guess[c] * std::log(guess[c] / mid) / 2;
      if (found[c] > 0) divergence += found[c] * std::log(found[c] / mid) / 2;
    }
    const bool pooled = std::sqrt(divergence) < static_cast<double>(p_.tau);
    const int32_t least = std::max(1, budget);
    const int32_t columns = pooled ? least : blocks_to_cover(column, least);
    const int32_t slashes = pooled ? least : blocks_to_cover(slash, least);
    for (const int32_t c : strongest(found, columns, 1)) {
      for (int32_t m = 0; m < query_blocks(); ++m) {
        if (c < visible(m)) chosen[static_cast<size_t>(m)].insert(c);
      }
    }
    for (const int32_t o : strongest(by_block(slash), slashes, 1)) {
      for (int32_t m = 0; m < query_blocks(); ++m) {
        for (int32_t c = begin(m) / p_.block; c < visible(m); ++c) {
          if (c >= o) chosen[static_cast<size_t>(m)].insert(c - o);
        }
      }
    }
    if (pooled) strongest_pairs(chosen);
  }
  void strongest_pairs(Chosen& chosen) const {
    const Matrix mass = masses();
    Row flat(static_cast<size_t>(query_blocks() * key_blocks()));
    for (int32_t m = 0; m < query_blocks(); ++m) {
      for (int32_t c = 0; c < visible(m); ++c) {
        flat[static_cast<size_t>(m * key_blocks() + c)] = cell(mass, m, c);
      }
    }
    double sum = 0;
    for (const int32_t pair : ranking(flat)) {
      sum += flat[static_cast<size_t>(pair)];
      if (sum > static_cast<double>(p_.gamma) * query_blocks()) break;
      chosen[static_cast<size_t>(pair / key_blocks())].insert(pair % key_blocks());
    }
  }

  const BlockOracle& oracle_;
  const Problem& problem_;
  tsp_pattern_t p_;
  size_t b_;
  std::vector<int32_t> entries_;
  int32_t e0_, heads_, first_head_;
  float threshold_;
};

std::vector<int32_t> entries_of(const Problem& problem, const Sets* sets, size_t b, int32_t set,
                                int32_t num_sets) {
  if (sets != nullptr) {
    const auto lists = static_cast<int32_t>((*sets)[b].size());
    return (*sets)[b][static_cast<size_t>(set / (num_sets / lists))];
  }
  std::vector<int32_t> all(static_cast<size_t>(problem.shape.k_lens[b]));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

}  // namespace

double BlockLists::difference(const BlockLists& other) const {
  size_t apart = 0, either = 0;
  for (size_t b = 0; b < blocks.size(); ++b) {
    for (size_t s = 0; s < blocks[b].size(); ++s) {
      for (size_t m = 0; m < blocks[b][s].size(); ++m) {
        std::vector<int32_t> both, all;
        const auto& x = blocks[b][s][m];
        const auto& y = other.blocks[b][s][m];
        std::set_intersection(x.begin(), x.end(), y.begin(), y.end(), std::back_inserter(both));
        std::set_union(x.begin(), x.end(), y.begin(), y.end(), std::back_inserter(all));
        apart += all.size() - both.size();
        either += all.size();
      }
    }
  }
  return either == 0 ? 0 : static_cast<double>(apart) / static_cast<double>(either);
}

BlockOracle::BlockOracle(const Problem& problem) : problem_(problem) {
  const Shape& s = problem.shape;
  for (size_t b = 0; b < s.k_lens.size(); ++b) {
    auto& of_seq = products_.emplace_back();
    for (int64_t head = 0; head < s.num_q_heads; ++head) {
      auto& all = of_seq.emplace_back(static_cast<size_t>(s.q_lens[b]),
                                      std::vector<double>(static_cast<size_t>(s.k_lens[b])));
      const int64_t kv_head = head / (s.num_q_heads / s.num_kv_heads);
      std::vector<double> q(static_cast<size_t>(s.dim));
      for (size_t i = 0; i < all.size(); ++i) {
        const int64_t row = problem.q_offsets[b] + static_cast<int64_t>(i);
        for (int64_t d = 0; d < s.dim; ++d) {
          q[static_cast<size_t>(d)] = static_cast<double>(problem.q.at(row, head, d));
        }
        for (size_t j = 0; j < all[i].size(); ++j) {
          const int64_t key = problem.k_offsets[b] + static_cast<int64_t>(j);
          double sum = 0;
          for (int64_t d = 0; d < s.dim; ++d) {
            sum += q[static_cast<size_t>(d)] * static_cast<double>(problem.k.at(key, kv_head, d));
          }
          all[i][j] = sum / std::sqrt(static_cast<double>(s.dim));
        }
      }
    }
  }
}

BlockLists BlockOracle::lists(const tsp_pattern_t& pattern, const Sets* sets) const {
  BlockLists lists;
  const int32_t num_sets = num_sets_of(pattern.share, problem_.shape);
  for (size_t b = 0; b < problem_.shape.k_lens.size(); ++b) {
    auto& blocks = lists.blocks.emplace_back();
    auto& columns = lists.columns.emplace_back();
    for (int32_t s = 0; s < num_sets; ++s) {
      Chosen chosen;
      Restated(*this, pattern, b, s, entries_of(problem_, sets, b, s, num_sets))
          .run(&chosen, &columns.emplace_back());
      auto& rows = blocks.emplace_back();
      for (const auto& row : chosen) rows.emplace_back(row.begin(), row.end());
    }
  }
  return lists;
}

void PrintTo(const BlockLists& lists, std::ostream* out) {
  for (const auto& seq : lists.blocks) {
    for (const auto& set : seq) {
      *out << "\n ";
      for (const auto& row : set) {
        for (const int32_t n : row) *out << " " << n;
        *out << ",";
      }
    }
  }
}

namespace {

/// A list in a backend's memory.
Bytes words(const Backend& backend, int64_t count) {
  return Bytes(backend, static_cast<size_t>(count) * sizeof(int32_t));
}
void fill(Bytes& list, int32_t value) {
  list.write(std::vector<int32_t>(list.size() / sizeof(int32_t), value));
}

/// The sets in a backend's memory.
class Selected {
 public:
  Selected(const Backend& backend, const Sets& sets, int64_t longest)
      : lists_(static_cast<int32_t>(sets[0].size())),
        stride_(longest),
        indices_(words(backend, static_cast<int64_t>(sets.size()) * lists_ * longest)),
        kept_(words(backend, static_cast<int64_t>(sets.size()))) {
    std::vector<int32_t> indices(indices_.size() / sizeof(int32_t), -1), kept;
    for (size_t b = 0; b < sets.size(); ++b) {
      kept.push_back(static_cast<int32_t>(sets[b][0].size()));
      for (size_t s = 0; s < sets[b].size(); ++s) {
        std::copy(sets[b][s].begin(), sets[b][s].end(),
                  indices.begin() + static_cast<int64_t>(b * sets[b].size() + s) * longest);
      }
    }
    indices_.write(indices);
    kept_.write(kept);
  }
  tsp_index_sets_t view() const {
    return {indices_.as<int32_t>(), kept_.as<int32_t>(), lists_, 0, stride_, lists_ * stride_};
  }

 private:
  int32_t lists_;
  int64_t stride_;
  Bytes indices_, kept_;
};

void run_estimate(const Backend& backend, tokensparse::Context& ctx,
                  tokensparse::EstimateParams& p) {
  const auto require = [](const tokensparse::Status& status) {
    if (!status.ok()) throw std::runtime_error(status.message());
  };
  require(tokensparse::Status(tsp_estimate_workspace(ctx.get(), &p, &p.workspace_bytes)));
  const Bytes workspace(backend, p.workspace_bytes);
  p.workspace = workspace.data();
  const int64_t before = num_allocations();
  const tokensparse::Status status(tsp_estimate(ctx.get(), &p));
  const bool allocated = num_allocations() != before;
  require(status);
  if (allocated && !backend.is_cuda()) throw std::runtime_error("estimate allocated");
  if (backend.memory != nullptr) backend.memory->synchronise();
}

}  // namespace

BlockLists estimate(const Backend& backend, tokensparse::Context& ctx, Problem& problem,
                    const tsp_pattern_t& pattern, const Sets* sets, int32_t precision) {
  const Shape& shape = problem.shape;
  const int32_t num_sets = num_sets_of(pattern.share, shape);
  const int32_t longest = *std::max_element(shape.k_lens.begin(), shape.k_lens.end());
  const int64_t most = longest / pattern.block + 2;
  OnDevice dq(backend, problem.q), dk(backend, problem.k);
  tokensparse::EstimateParams p;
  p.precision = precision;
  p.pattern = pattern;
  p.q = dq.view();
  p.k = dk.view();
  p.batch = problem.batch();
  const auto seqs = static_cast<int64_t>(shape.k_lens.size());
  Bytes block_list = words(backend, seqs * num_sets * most * (most + 3));
  Bytes count_list = words(backend, seqs * num_sets * (most + 1));
  Bytes column_list = words(backend, seqs * num_sets * (longest + 30));
  Bytes column_count = words(backend, seqs * num_sets);
  for (Bytes* list : {&block_list, &count_list, &column_list, &column_count}) fill(*list, -7);
  tsp_block_sets_t& out = p.blocks;
  out.blocks = block_list.as<int32_t>();
  out.counts = count_list.as<int32_t>();
  out.columns = column_list.as<int32_t>();
  out.num_columns = column_count.as<int32_t>();
  out.block = pattern.block;
  out.num_sets = num_sets;
  out.row_stride = most + 3;
  out.set_stride = most * out.row_stride;
  out.seq_stride = num_sets * out.set_stride;
  out.count_set_stride = most + 1;
  out.count_seq_stride = num_sets * out.count_set_stride;
  out.column_set_stride = longest + 30;
  out.column_seq_stride = num_sets * out.column_set_stride;
  std::optional<Selected> selected;
  if (sets != nullptr) p.selected = selected.emplace(backend, *sets, longest).view();
  run_estimate(backend, ctx, p);
  const auto blocks = block_list.read<int32_t>();
  const auto counts = count_list.read<int32_t>();
  const auto columns = column_list.read<int32_t>();
  const auto num_columns = column_count.read<int32_t>();
  BlockLists lists;
  for (int32_t b = 0; b < seqs; ++b) {
    const auto at = static_cast<size_t>(b);
    auto& of_seq = lists.blocks.emplace_back();
    auto& columns_of_seq = lists.columns.emplace_back();
    for (int32_t s = 0; s < num_sets; ++s) {
      std::vector<int32_t> entries = entries_of(problem, sets, at, s, num_sets);
      const auto queries = entries.end() - std::lower_bound(entries.begin(), entries.end(),
                                                            shape.k_lens[at] - shape.q_lens[at]);
      auto& rows = of_seq.emplace_back();
      for (int64_t m = 0; m < (queries + pattern.block - 1) / pattern.block; ++m) {
        const auto row =
            blocks.begin() + b * out.seq_stride + s * out.set_stride + m * out.row_stride;
        const auto count =
            counts[static_cast<size_t>(b * out.count_seq_stride + s * out.count_set_stride + m)];
        rows.emplace_back(row, row + count);
      }
      const auto first = columns.begin() + b * out.column_seq_stride + s * out.column_set_stride;
      columns_of_seq.emplace_back(
          first, first + std::max(0, num_columns[static_cast<size_t>(b * num_sets + s)]));
    }
  }
  return lists;
}

}  // namespace tsp::test
