// SPDX-License-Identifier: MIT
// The meaning once more, in another shape: attention over all pairs with the mask
// (i in I) and (j in I) and (j <= i), and j among what the query block of i lists; and rounding
// bounds derived on the way.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/support/problem.h"

namespace tsp::test {
namespace {

constexpr double kEps = 0x1p-24;  // unit roundoff of f32
constexpr double kInfinity = std::numeric_limits<double>::infinity();

double output_roundoff(int32_t dtype, double value) {
  if (dtype == TSP_F32) return kEps * std::fabs(value) + 1e-38;
  return dtype == TSP_F16 ? 0x1p-11 * std::fabs(value) + 0x1p-25 : 0x1p-8 * std::fabs(value);
}

struct Logit {
  double value;
  double error;  // bound for the error of a computed value
};

/// A tensor's values as doubles, [row][head][d]: the oracle reads each many times.
struct Values {
  explicit Values(const Tensor& tensor) : heads(tensor.view().heads), dim(tensor.view().dim) {
    for (int64_t row = 0; row < tensor.tokens(); ++row) {
      for (int64_t head = 0; head < heads; ++head) {
        for (int64_t d = 0; d < dim; ++d) {
          data.push_back(static_cast<double>(tensor.at(row, head, d)));
        }
      }
    }
  }
  const double* row(int64_t token, int64_t head) const {
    return data.data() + (token * heads + head) * dim;
  }
  int64_t heads, dim;
  std::vector<double> data;
};

Logit logit_of(const double* q, const double* k, int64_t dim, double eps_operand) {
  double sum = 0, magnitude = 0;
  for (int64_t d = 0; d < dim; ++d) {
    const double product = q[d] * k[d];
    sum += product;
    magnitude += std::fabs(product);
  }
  const double scale =
      static_cast<double>(static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim))));
  // Dot product in any order, scaling, and the subtraction of a maximum as large as the logit.
  const double rounding = (static_cast<double>(dim) + 8) * kEps + 2 * eps_operand;
  return {scale * sum, scale * magnitude * rounding + 4 * kEps * std::fabs(scale * sum)};
}

/// Whether the query block of entry i lists entry j; entries count the tokens that are `in`.
class Listed {
 public:
  Listed(const std::vector<bool>& in, int32_t first_position, const Blocks* blocks, size_t b,
         int64_t head, int64_t num_heads)
      : block_(blocks == nullptr ? 0 : blocks->block) {
    if (blocks == nullptr) return;
    for (size_t t = 0; t < in.size(); ++t) {
      if (static_cast<int32_t>(t) == first_position) first_query_ = count_;
      entry_.push_back(count_);
      if (in[t]) ++count_;
    }
    const auto num_sets = static_cast<int64_t>(blocks->rows[b].size());
    const auto set = static_cast<size_t>(head / (num_heads / num_sets));
    rows_ = &blocks->rows[b][set];
    if (!blocks->columns.empty()) columns_ = &blocks->columns[b][set];
  }
  bool operator()(int32_t position, int32_t key) const {
    if (rows_ == nullptr) return true;
    const int32_t i = entry_[static_cast<size_t>(position)];
    const int32_t j = entry_[static_cast<size_t>(key)];
    const auto& row = (*rows_)[static_cast<size_t>((i - first_query_) / block_)];
    return std::count(row.begin(), row.end(), j / block_) > 0 ||
           (columns_ != nullptr && std::count(columns_->begin(), columns_->end(), j) > 0);
  }

 private:
  int32_t block_;
  int32_t count_ = 0, first_query_ = 0;
  std::vector<int32_t> entry_;  // of each position, or the one that would be next
  const std::vector<std::vector<int32_t>>* rows_ = nullptr;
  const std::vector<int32_t>* columns_ = nullptr;
};

/// Calls visit(row, head, kv_head, first, seen) for every row that has keys: `first` is the
/// sequence's first row of k, `seen` the row's keys from there, ascending.
template <typename Visit>
void for_each_row(const Problem& p, const Sets* sets, const Options& options, const Blocks* blocks,
                  Visit&& visit) {
  const Shape& shape = p.shape;
  const int64_t heads = shape.num_q_heads;
  for (size_t b = 0; b < shape.q_lens.size(); ++b) {
    const int32_t k_len = shape.k_lens[b];
    for (int64_t head = 0; head < heads; ++head) {
      std::vector<bool> in(static_cast<size_t>(k_len), sets == nullptr);
      if (sets != nullptr) {
        const auto num_sets = static_cast<int64_t>((*sets)[b].size());
        for (const int32_t t : (*sets)[b][static_cast<size_t>(head / (heads / num_sets))]) {
          in[static_cast<size_t>(t)] = true;
        }
      }
      const Listed listed(in, k_len - shape.q_lens[b], blocks, b, head, heads);
      for (int32_t r = 0; r < shape.q_lens[b]; ++r) {
        const int32_t position = k_len - shape.q_lens[b] + r;
        const bool kept = in[static_cast<size_t>(position)];
        if (!kept && options.dropped == TSP_DROPPED_ZERO) continue;
        std::vector<int32_t> seen;
        for (int32_t j = 0; j <= position; ++j) {
          const bool local = j < options.sink || j > position - options.band;
          if (kept ? in[static_cast<size_t>(j)] && listed(position, j) : local) seen.push_back(j);
        }
        visit(int64_t{p.q_offsets[b]} + r, head, head / (heads / shape.num_kv_heads),
              int64_t{p.k_offsets[b]}, seen);
      }
    }
  }
}

float rounded(float value, int32_t dtype) {
  uint32_t bits = 0;
  store_from_f32(&bits, dtype, 0, value);
  return load_as_f32(&bits, dtype, 0);
}

}  // namespace

Expected oracle_attend(const Problem& p, const Sets* sets, const Options& options,
                       double eps_operand, double eps_weight, const Blocks* blocks) {
  const Shape& shape = p.shape;
  const int64_t heads = shape.num_q_heads, dim = shape.dim;
  const Values q(p.q), k(p.k), v(p.v);
  Expected e;
  e.out.assign(static_cast<size_t>(p.q.tokens() * heads * dim), 0);
  e.out_bound.assign(e.out.size(), 0);
  e.lse.assign(static_cast<size_t>(p.q.tokens() * heads), -kInfinity);
  e.lse_bound.assign(e.lse.size(), 0);
  const auto visit = [&](int64_t row, int64_t head, int64_t kv_head, int64_t first,
                         const std::vector<int32_t>& seen) {
    std::vector<double> weights;
    double max = -kInfinity, delta = 0, total = 0;
    for (const int32_t j : seen) {
      const Logit logit = logit_of(q.row(row, head), k.row(first + j, kv_head), dim, eps_operand);
      weights.push_back(logit.value);
      max = std::fmax(max, logit.value);
      delta = std::fmax(delta, logit.error);
    }
    for (double& w : weights) total += w = std::exp(w - max);
    const double n = static_cast<double>(seen.size());
    const double relative =
        std::expm1(2 * delta) + eps_weight + eps_operand + (n + 16) * kEps + 4e-7;
    std::vector<double> sums(static_cast<size_t>(dim)), magnitudes(sums);
    for (size_t i = 0; i < seen.size(); ++i) {
      const double* const values = v.row(first + seen[i], kv_head);
      for (size_t d = 0; d < sums.size(); ++d) {
        const double term = weights[i] / total * values[d];
        sums[d] += term;
        magnitudes[d] += std::fabs(term);
      }
    }
    for (size_t d = 0; d < sums.size(); ++d) {
      const size_t at = static_cast<size_t>((row * heads + head) * dim) + d;
      e.out[at] = sums[d];
      e.out_bound[at] =
          magnitudes[d] * relative + output_roundoff(shape.out_dtype, sums[d]) + 1e-30;
    }
    const auto at = static_cast<size_t>(row * heads + head);
    e.lse[at] = max + std::log(total);
    e.lse_bound[at] = delta + (n + 16) * kEps + 1e-6 + 4 * kEps * std::fabs(e.lse[at]);
  };
  for_each_row(p, sets, options, blocks, visit);
  return e;
}

std::vector<double> plain_attend(const Problem& p, const Sets* sets, const Options& options,
                                 const Blocks* blocks, Plain plain) {
  const int64_t heads = p.shape.num_q_heads, dim = p.shape.dim;
  const bool operators = plain == Plain::kOperators;
  const auto stored = [&](float value) {
    return operators ? rounded(value, p.shape.out_dtype) : value;
  };
  const Values q(p.q), k(p.k), v(p.v);
  std::vector<double> out(static_cast<size_t>(p.q.tokens() * heads * dim), 0);
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)));
  const auto visit = [&](int64_t row, int64_t head, int64_t kv_head, int64_t first,
                         const std::vector<int32_t>& seen) {
    std::vector<float> weights;
    float max = -std::numeric_limits<float>::infinity(), total = 0;
    for (const int32_t j : seen) {
      const double *const a = q.row(row, head), *const b = k.row(first + j, kv_head);
      float sum = 0;
      for (int64_t d = 0; d < dim; ++d) sum += static_cast<float>(a[d]) * static_cast<float>(b[d]);
      weights.push_back(stored(stored(sum) * scale));
      max = std::fmax(max, weights.back());
    }
    for (float& w : weights) total += w = std::exp(w - max);
    if (operators) {  // softmax is an operator of its own
      for (float& w : weights) w /= total;
      total = 1;
    }
    std::vector<float> sums(static_cast<size_t>(dim));
    for (size_t i = 0; i < seen.size(); ++i) {
      const double* const values = v.row(first + seen[i], kv_head);
      const float weight = rounded(weights[i], p.shape.out_dtype);
      for (size_t d = 0; d < sums.size(); ++d) sums[d] += weight * static_cast<float>(values[d]);
    }
    const auto at = static_cast<size_t>((row * heads + head) * dim);
    for (size_t d = 0; d < sums.size(); ++d) {
      out[at + d] = static_cast<double>(rounded(sums[d] / total, p.shape.out_dtype));
    }
  };
  for_each_row(p, sets, options, blocks, visit);
  return out;
}

void oracle_score(const Problem& p, const Options& options, double eps_operand,
                  std::vector<double>* scores, std::vector<double>* bounds) {
  const Shape& shape = p.shape;
  const int64_t heads = shape.num_q_heads;
  const Values q(p.q), k(p.k);
  scores->assign(static_cast<size_t>(p.prefix_total(options.window) * heads), 0);
  bounds->assign(scores->size(), 0);
  int64_t column = 0;
  for (size_t b = 0; b < shape.q_lens.size(); ++b) {
    const int32_t window = std::min(options.window, shape.q_lens[b]);
    const int32_t prefix = shape.k_lens[b] - window;
    for (int64_t head = 0; head < heads; ++head) {
      std::vector<double> mean(static_cast<size_t>(prefix), 0);
      double delta = 0;
      const int64_t kv_head = head / (heads / shape.num_kv_heads);
      for (int32_t w = 0; w < window; ++w) {
        const int32_t visible = prefix + w + 1;
        const int64_t row = p.q_offsets[b] + shape.q_lens[b] - window + w;
        std::vector<double> weights;
        double max = -kInfinity, total = 0;
        for (int32_t j = 0; j < visible; ++j) {
          const Logit logit = logit_of(q.row(row, head), k.row(p.k_offsets[b] + j, kv_head),
                                       shape.dim, eps_operand);
          weights.push_back(logit.value);
          max = std::fmax(max, logit.value);
          delta = std::fmax(delta, logit.error);
        }
        for (double& x : weights) total += x = std::exp(x - max);
        for (int32_t t = 0; t < prefix; ++t) {
          mean[static_cast<size_t>(t)] += weights[static_cast<size_t>(t)] / total / window;
        }
      }
      const int32_t reach = options.pool / 2;
      for (int32_t t = 0; t < prefix; ++t) {
        double sum = 0;
        for (int32_t u = t - reach; u <= t + reach; ++u) {
          if (u >= 0 && u < prefix) sum += mean[static_cast<size_t>(u)];
        }
        const auto at = static_cast<size_t>((column + t) * heads + head);
        (*scores)[at] = sum / options.pool;
        const double n = shape.k_lens[b] + window + options.pool;
        (*bounds)[at] =
            sum / options.pool * (std::expm1(2 * delta) + (n + 16) * kEps + 4e-7) + 1e-30;
      }
    }
    column += prefix;
  }
}

void expect_attend(const Expected& expected, const AttendResult& result, const std::string& what) {
  const tsp_tensor_t view = result.out.view();
  size_t at = 0;
  for (int64_t row = 0; row < result.out.tokens(); ++row) {
    for (int64_t head = 0; head < view.heads; ++head) {
      const auto lse_at = static_cast<size_t>(row * view.heads + head);
      const double lse = static_cast<double>(result.lse.at(row, head));
      if (std::isinf(expected.lse[lse_at])
              ? lse != expected.lse[lse_at]
              : !(std::fabs(lse - expected.lse[lse_at]) <= expected.lse_bound[lse_at])) {
        ADD_FAILURE() << what << ": lse of row " << row << ", head " << head << " is " << lse
                      << ", not " << expected.lse[lse_at] << " +- " << expected.lse_bound[lse_at];
        return;
      }
      for (int64_t d = 0; d < view.dim; ++d, ++at) {
        const double value = static_cast<double>(result.out.at(row, head, d));
        if (!(std::fabs(value - expected.out[at]) <= expected.out_bound[at])) {
          ADD_FAILURE() << what << ": out of row " << row << ", head " << head << ", channel " << d
                        << " is " << value << ", not " << expected.out[at] << " +- "
                        << expected.out_bound[at];
          return;
        }
      }
    }
  }
}

void expect_score(const std::vector<double>& scores, const std::vector<double>& bounds,
                  const Tensor& result, const std::string& what) {
  size_t at = 0;
  for (int64_t column = 0; column < result.tokens(); ++column) {
    for (int64_t head = 0; head < result.view().heads; ++head, ++at) {
      const double value = static_cast<double>(result.at(column, head));
      if (!(std::fabs(value - scores[at]) <= bounds[at])) {
        ADD_FAILURE() << what << ": score of column " << column << ", head " << head << " is "
                      << value << ", not " << scores[at] << " +- " << bounds[at];
        return;
      }
    }
  }
}

}  // namespace tsp::test
