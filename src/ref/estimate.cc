// SPDX-License-Identifier: MIT
// What tsp_estimate() means: explicit dot products, softmax rows and their sums in double. What is
// decided from them is core/block_choice.h, exact and common to all backends.
#include "tokensparse/estimate.h"

#include <cmath>
#include <limits>

#include "core/block_choice.h"
#include "core/workspace.h"
#include "ref/ref_ops.h"

namespace tsp::ref {
namespace {

/// Memory of one set, for the longest sequence.
struct Memory {
  double* row;       // [Tk] a row's logits, then weights
  double* q_mean;    // [D]
  double* k_mean;    // [D]
  double* head;      // [Tk] one head's sums
  double* slashes;   // [Tk]
  float* columns;    // [Tk] a set's sums
  float* distances;  // [Tk]
  float* mass;       // flexprefill: [query blocks, key blocks]; else [key blocks]
  float* guess;      // [key blocks]
  uint8_t* marks;    // flexprefill: [query blocks, key blocks]
  ChoiceScratch choice;
  size_t bytes;

  Memory(const tsp_estimate_params_t& p, void* base) {
    Workspace<> take(base);
    const int64_t keys = longest_k(p.batch);
    const int64_t blocks = (keys + p.pattern.block - 1) / p.pattern.block;
    const bool flex = p.pattern.kind == TSP_PATTERN_FLEXPREFILL;
    const int64_t map = flex ? blocks * blocks : blocks;
    const int64_t values = std::max(keys, map);
    row = take.take<double>(keys);
    q_mean = take.take<double>(p.q.dim);
    k_mean = take.take<double>(p.q.dim);
    head = take.take<double>(keys);
    slashes = take.take<double>(keys);
    columns = take.take<float>(keys);
    distances = take.take<float>(keys);
    mass = take.take<float>(map);
    guess = take.take<float>(blocks);
    marks = take.take<uint8_t>(map);
    choice = {take.take<uint64_t>(values), take.take<int32_t>(values), take.take<uint8_t>(values),
              take.take<float>(blocks)};
    bytes = take.used();
  }
};

/// One head of a set on its entries.
struct Head {
  const tsp_estimate_params_t& p;
  const Seq& seq;
  const BlockRows& rows;
  int32_t head;

  double at(const tsp_tensor_t& view, int64_t row, int64_t d) const {
    return static_cast<double>(load_as_f32(view.data, view.dtype, row + d * view.dim_stride));
  }
  int64_t q_row(int32_t entry) const {
    return q_row_offset(p.q, seq, rows.position(entry) - seq.q_pos(), head);
  }
  int64_t k_row(int32_t entry) const {
    return k_row_offset(p.k, seq, rows.position(entry),
                        static_cast<int32_t>(head / (p.q.heads / p.k.heads)));
  }
  double dot(int32_t q_entry, int32_t k_entry) const {
    double sum = 0;
    for (int64_t d = 0; d < p.q.dim; ++d) {
      sum += at(p.q, q_row(q_entry), d) * at(p.k, k_row(k_entry), d);
    }
    return sum;
  }
  void mean_of_queries(int32_t begin, int32_t end, double* mean) const {
    for (int64_t d = 0; d < p.q.dim; ++d) {
      mean[d] = 0;
      for (int32_t e = begin; e < end; ++e) mean[d] += at(p.q, q_row(e), d) / (end - begin);
    }
  }
  void mean_of_keys(int32_t block, double* mean) const {
    const int32_t begin = block * rows.block;
    const int32_t end = std::min(begin + rows.block, rows.count);
    for (int64_t d = 0; d < p.k.dim; ++d) {
      mean[d] = 0;
      for (int32_t e = begin; e < end; ++e) mean[d] += at(p.k, k_row(e), d) / (end - begin);
    }
  }
};

/// Logits to weights; not finite: all NaN.
void softmax(double* row, int32_t n) {
  double max = -std::numeric_limits<double>::infinity();
  bool finite = true;
  for (int32_t i = 0; i < n; ++i) {
    finite = finite && std::isfinite(row[i]);
    max = std::max(max, row[i]);
  }
  double sum = 0;
  for (int32_t i = 0; i < n; ++i) sum += row[i] = std::exp(row[i] - max);
  for (int32_t i = 0; i < n; ++i) {
    row[i] = finite ? row[i] / sum : std::numeric_limits<double>::quiet_NaN();
  }
}

/// sums[n] of query block m over its groups.
void sum_antidiagonals(const Head& h, int32_t m, const Memory& memory) {
  const int32_t stride = h.p.pattern.stride;
  const int32_t begin = h.rows.first_entry(m);
  const int32_t end = h.rows.last_entry(m) + 1;
  const int32_t groups = (end - begin + stride - 1) / stride;
  for (int32_t first = begin; first < end; first += stride) {
    const int32_t last = std::min(first + stride, end) - 1;
    const int32_t visible = last / stride + 1;
    for (int32_t j = 0; j < visible; ++j) {
      double sum = 0;
      for (int32_t t = 0; t < stride; ++t) {
        const int32_t q_entry = first + stride - 1 - t;
        const int32_t k_entry = j * stride + t;
        if (q_entry <= last && k_entry < h.rows.count) sum += h.dot(q_entry, k_entry);
      }
      memory.row[j] = static_cast<double>(h.p.scale) / stride * sum;
    }
    softmax(memory.row, visible);
    for (int32_t j = 0; j < visible; ++j) {
      memory.head[j * stride / h.rows.block] += memory.row[j] / groups;
    }
  }
}

/// scale * query . mean of k over block n.
double logit_of_block(const Head& h, const double* query, int32_t n, const Memory& memory) {
  h.mean_of_keys(n, memory.k_mean);
  double sum = 0;
  for (int64_t d = 0; d < h.p.k.dim; ++d) sum += query[d] * memory.k_mean[d];
  return static_cast<double>(h.p.scale) * sum;
}

/// memory.row[n] = softmax of the logits of block n, n < count.
void weigh_blocks(const Head& h, const double* query, int32_t count, const Memory& memory) {
  for (int32_t n = 0; n < count; ++n) memory.row[n] = logit_of_block(h, query, n, memory);
  softmax(memory.row, count);
}

/// memory.head[n] = what block n has of the softmax over all entries of query block m together and
/// the blocks that end at or before them.
void sum_seen_blocks(const Head& h, int32_t m, const Memory& memory) {
  double top = -std::numeric_limits<double>::infinity();
  double total = 0;
  bool finite = true;
  const int32_t visible = h.rows.visible(m);
  for (int32_t e = h.rows.first_entry(m); e <= h.rows.last_entry(m); ++e) {
    h.mean_of_queries(e, e + 1, memory.q_mean);
    for (int32_t n = 0; n < (e + 1) / h.rows.block; ++n) {
      const double x = logit_of_block(h, memory.q_mean, n, memory);
      finite = finite && std::isfinite(x);
      if (x > top) {
        const double factor = std::exp(top - x);
        for (int32_t i = 0; i < visible; ++i) memory.head[i] *= factor;
        total *= factor;
        top = x;
      }
      memory.head[n] += std::exp(x - top);
      total += std::exp(x - top);
    }
  }
  if (!finite) total = std::numeric_limits<double>::quiet_NaN();
  for (int32_t n = 0; total != 0 && n < visible; ++n) memory.head[n] /= total;
}

/// memory.head[n] += what block n has of query block m.
void sum_block(const Head& h, int32_t m, const Memory& memory) {
  const int32_t begin = h.rows.first_entry(m);
  const int32_t end = h.rows.last_entry(m) + 1;
  const int32_t visible = h.rows.visible(m);
  if (h.p.pattern.kind == TSP_PATTERN_XATTENTION) return sum_antidiagonals(h, m, memory);
  if (h.p.pattern.kind == TSP_PATTERN_FLASH) return sum_seen_blocks(h, m, memory);
  h.mean_of_queries(begin, end, memory.q_mean);
  weigh_blocks(h, memory.q_mean, visible, memory);
  for (int32_t n = 0; n < visible; ++n) memory.head[n] += memory.row[n];
}

void sum_lines(const Head& h, const Memory& memory) {
  const int32_t n = h.rows.count;
  const int32_t count = line_rows(h.p.pattern, h.rows);
  std::fill(memory.head, memory.head + n, 0.0);
  std::fill(memory.slashes, memory.slashes + n, 0.0);
  for (int32_t e = n - count; e < n; ++e) {
    for (int32_t t = 0; t <= e; ++t) memory.row[t] = static_cast<double>(h.p.scale) * h.dot(e, t);
    softmax(memory.row, e + 1);
    for (int32_t t = 0; t <= e; ++t) {
      memory.head[t] += memory.row[t] / count;
      memory.slashes[e - t] += memory.row[t] / count;
    }
  }
}

/// Adds one head's share to the mean of a set.
void add_head(const double* sums, int32_t n, bool first, int64_t heads, float* mean) {
  for (int32_t i = 0; i < n; ++i) {
    const auto value = static_cast<float>(sums[i] / static_cast<double>(heads));
    mean[i] = first ? value : mean[i] + value;
  }
}

/// The heads of one block set.
struct Set {
  const tsp_estimate_params_t& p;
  Seq seq;
  BlockRows rows;
  int32_t first_head;
  int32_t num_heads;

  template <typename Fn>
  void for_each_head(Fn&& fn) const {
    for (int32_t i = 0; i < num_heads; ++i) fn(Head{p, seq, rows, first_head + i}, i == 0);
  }
  void mass_of(int32_t m, const Memory& memory, float* mass) const {
    for_each_head([&](const Head& h, bool first) {
      std::fill(memory.head, memory.head + rows.visible(m), 0.0);
      sum_block(h, m, memory);
      add_head(memory.head, rows.visible(m), first, num_heads, mass);
    });
  }
};

void estimate_lines(const Set& set, const Memory& memory, const BlockWriter& out) {
  const tsp_pattern_t& pattern = set.p.pattern;
  const BlockRows& rows = set.rows;
  const Lines lines = {memory.columns, memory.distances};
  set.for_each_head([&](const Head& h, bool first) {
    sum_lines(h, memory);
    add_head(memory.head, rows.count, first, set.num_heads, lines.columns);
    add_head(memory.slashes, rows.count, first, set.num_heads, lines.slashes);
  });
  if (pattern.kind == TSP_PATTERN_MINFERENCE) {
    choose_vertical_slash(pattern, rows, lines, memory.choice, out);
    return;
  }
  set.for_each_head([&](const Head& h, bool first) {
    h.mean_of_queries(rows.count - line_rows(pattern, rows), rows.count, memory.q_mean);
    weigh_blocks(h, memory.q_mean, rows.num_key_blocks(), memory);
    add_head(memory.row, rows.num_key_blocks(), first, set.num_heads, memory.guess);
  });
  PooledRows pooled = {nullptr, rows.num_key_blocks()};
  if (pooled_fits(pattern, rows, lines, memory.guess)) {
    pooled.mass = memory.mass;
    for (int32_t m = 0; m < rows.num_query_blocks(); ++m) {
      set.mass_of(m, memory, memory.mass + m * pooled.row_stride);
    }
  }
  choose_flexprefill(pattern, rows, lines, pooled, memory.choice, memory.marks, out);
}

}  // namespace

size_t estimate_workspace(const tsp_context_t&, const tsp_estimate_params_t& p) {
  return Memory(p, nullptr).bytes;
}

tsp_status_t estimate(tsp_context_t&, const tsp_estimate_params_t& p) {
  const Memory memory(p, p.workspace);
  const auto heads = static_cast<int32_t>(p.q.heads / p.blocks.num_sets);
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    for (int32_t s = 0; s < p.blocks.num_sets; ++s) {
      const Seq seq = seq_at(p.batch, b);
      const int32_t index_set =
          p.selected.indices == nullptr ? 0 : s / (p.blocks.num_sets / p.selected.num_sets);
      const BlockRows rows = {entries_of(p.selected, seq, index_set), p.pattern.block};
      const Set set = {p, seq, rows, s * heads, heads};
      const BlockWriter out(p.blocks, b, s);
      if (rows.num_queries() == 0) continue;
      if (reads_everything(p.pattern, rows)) {
        out.write_everything(rows);
      } else if (has_lines(p.pattern)) {
        estimate_lines(set, memory, out);
      } else {
        for (int32_t m = 0; m < rows.num_query_blocks(); ++m) {
          set.mass_of(m, memory, memory.mass);
          choose_row(p.pattern, set_threshold(p.pattern, s), rows, m, memory.mass, memory.choice,
                     out);
        }
      }
    }
  }
  return TSP_OK;
}

}  // namespace tsp::ref
