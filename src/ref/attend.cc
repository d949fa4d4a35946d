// SPDX-License-Identifier: MIT
// What tsp_attend() means: a softmax over the visible tokens of the head's set, row by row.
#include "tokensparse/attend.h"

#include <cmath>
#include <limits>

#include "core/blocks.h"
#include "core/workspace.h"
#include "ref/ref_ops.h"

namespace tsp::ref {
namespace {

/// Tokens that a query row sees: entries of a list, or 0 .. sink - 1 and, from `first` on, as many
/// as make `count`.
struct Visible {
  const int32_t* list;  // null: ranges
  int32_t sink;
  int32_t first;
  int32_t count;
  int32_t operator[](int32_t i) const {
    if (list != nullptr) return list[i];
    return i < sink ? i : first + i - sink;
  }
};

/// What a row that its set left out sees: the sink and the band, each key once.
Visible local_keys(const tsp_attend_params_t& p, int32_t position) {
  const int32_t first = std::max(0, position - p.band + 1);
  const int32_t sink = std::min(p.sink, first);
  return {nullptr, sink, first, sink + position - first + 1};
}

void write_row(const tsp_attend_params_t& p, const Seq& seq, int32_t q_row, int32_t head,
               const double* values, double lse) {
  const int64_t at = q_row_offset(p.out, seq, q_row, head);
  for (int64_t d = 0; d < p.out.dim; ++d) {
    store_from_f32(p.out.data, p.out.dtype, at + d * p.out.dim_stride,
                   values == nullptr ? 0.0f : static_cast<float>(values[d]));
  }
  if (p.lse.data != nullptr) {
    store_from_f32(p.lse.data, TSP_F32, q_row_offset(p.lse, seq, q_row, head),
                   static_cast<float>(lse));
  }
}

void attend_row(const tsp_attend_params_t& p, const Seq& seq, int32_t q_row, int32_t head,
                const Visible& visible, double* weights, double* sums) {
  const auto kv_head = static_cast<int32_t>(head / (p.q.heads / p.k.heads));
  double max = -std::numeric_limits<double>::infinity();
  for (int32_t i = 0; i < visible.count; ++i) {
    weights[i] = logit(p.q, p.k, seq, q_row, visible[i], head, p.scale);
    max = std::max(max, weights[i]);
  }
  double total = 0;
  std::fill(sums, sums + p.v.dim, 0.0);
  for (int32_t i = 0; i < visible.count; ++i) {
    const double weight = std::exp(weights[i] - max);
    total += weight;
    const int64_t v_at = k_row_offset(p.v, seq, visible[i], kv_head);
    for (int64_t d = 0; d < p.v.dim; ++d) {
      sums[d] +=
          weight * static_cast<double>(load_as_f32(p.v.data, p.v.dtype, v_at + d * p.v.dim_stride));
    }
  }
  for (int64_t d = 0; d < p.v.dim; ++d) sums[d] /= total;
  write_row(p, seq, q_row, head, sums, max + std::log(total));
}

/// The entries that query block m reads, as ascending positions.
int32_t list_positions(const tsp_block_sets_t& sets, const Entries& entries, int32_t seq,
                       int32_t set, int32_t m, int32_t* positions) {
  const QueryBlock row = query_block(sets, entries, seq, set, m);
  const Columns columns = columns_of(sets, seq, set);
  int32_t count = 0;
  for (int32_t j = 0; j < row.end; ++j) {
    if (std::binary_search(row.blocks, row.blocks + row.num_blocks, j / sets.block) ||
        std::binary_search(columns.entries, columns.entries + columns.count, j)) {
      positions[count++] = entries.position(j);
    }
  }
  return count;
}

struct Memory {
  double* weights;     // [longest Tk]
  double* sums;        // [D]
  int32_t* positions;  // [longest Tk], with blocks
  size_t bytes;
};
Memory memory_of(const tsp_attend_params_t& p, void* base) {
  Workspace<> workspace(base);
  Memory memory{};
  memory.weights = workspace.take<double>(longest_k(p.batch));
  memory.sums = workspace.take<double>(p.v.dim);
  if (p.blocks.blocks != nullptr) memory.positions = workspace.take<int32_t>(longest_k(p.batch));
  memory.bytes = workspace.used();
  return memory;
}

/// The rows that a head keeps, and what becomes of those that it leaves out.
void attend_head(const tsp_attend_params_t& p, const Seq& seq, int32_t head, const Memory& memory) {
  const auto set_of = [&](int32_t num_sets) {
    return static_cast<int32_t>(head / (p.q.heads / num_sets));
  };
  const Entries entries =
      entries_of(p.selected, seq, p.selected.indices == nullptr ? 0 : set_of(p.selected.num_sets));
  const bool blocks = p.blocks.blocks != nullptr;
  int32_t seen = 0;  // of memory.positions
  int32_t entry = entries.first_query;
  for (int32_t q_row = 0; q_row < seq.q_len; ++q_row) {
    const int32_t position = seq.q_pos() + q_row;
    if (entry == entries.count || entries.position(entry) != position) {
      if (p.dropped == TSP_DROPPED_LOCAL) {
        attend_row(p, seq, q_row, head, local_keys(p, position), memory.weights, memory.sums);
      } else {
        write_row(p, seq, q_row, head, nullptr, -std::numeric_limits<double>::infinity());
      }
      continue;
    }
    Visible visible{entries.list, 0, 0, entry + 1};
    if (blocks) {
      const int32_t query = entry - entries.first_query;
      if (query % p.blocks.block == 0) {
        seen = list_positions(p.blocks, entries, seq.index, set_of(p.blocks.num_sets),
                              query / p.blocks.block, memory.positions);
      }
      const int32_t* const end =
          std::upper_bound(memory.positions, memory.positions + seen, position);
      visible = {memory.positions, 0, 0, static_cast<int32_t>(end - memory.positions)};
    }
    attend_row(p, seq, q_row, head, visible, memory.weights, memory.sums);
    ++entry;
  }
}

}  // namespace

size_t attend_workspace(const tsp_context_t&, const tsp_attend_params_t& p) {
  return memory_of(p, nullptr).bytes;
}

tsp_status_t attend(tsp_context_t&, const tsp_attend_params_t& p) {
  const Memory memory = memory_of(p, p.workspace);
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    for (int32_t head = 0; head < p.q.heads; ++head) attend_head(p, seq, head, memory);
  }
  return TSP_OK;
}

}  // namespace tsp::ref
