// SPDX-License-Identifier: MIT
// estimate: packs the keys of a wave of KV heads in the form that the pattern multiplies them, then
// runs the query blocks of every block set against them. Antidiagonal sums are one product of rows
// `stride` times as long. Waves bound the memory; nothing depends on the threads.
#include <cmath>
#include <limits>

#include "cpu/estimate_rows.h"

namespace tsp::cpu {
namespace {

constexpr size_t kWaveBytes = size_t{32} << 20;
constexpr int64_t kTileFloats = int64_t{3} << 16;  // weights of a tile: they stay in L2

/// What one thread works with.
struct Scratch {
  unsigned char* kernel;
  int64_t* q_offset;  // [segments, kEstimateRows]
  float* means;
  float* weights;
  float* mass;     // [blocks of an item, key blocks]
  float* joint;    // [key blocks]; flash
  float* columns;  // [Tk], as are the next; lines only
  float* slashes;
  float* guess;    // [key blocks]; flexprefill, as are the next
  float* map;      // [query blocks, key blocks]
  uint8_t* marks;  // as the map
  ChoiceScratch choice;
};

int32_t key_blocks(const EstimateCall& call) {
  return ceil_div(call.longest, call.p.pattern.block);
}
int32_t rows_in_block(const EstimateCall& call, Source source) {
  return call.p.pattern.block / call.step(source);
}
/// Query blocks whose rows fill a tile.
int32_t blocks_in_item(const EstimateCall& call) {
  return std::max(1, kEstimateRows / rows_in_block(call, call.map_queries()));
}
int64_t weight_stride(const EstimateCall& call) {
  const int32_t step = has_lines(call.p.pattern) ? 1 : call.step(call.map_keys());
  return int64_t{ceil_div(ceil_div(call.longest, step), 16)} * 16;
}
int32_t line_tile_rows(const EstimateCall& call) {
  const int64_t rows = kTileFloats / std::max<int64_t>(weight_stride(call), 1);
  return static_cast<int32_t>(std::clamp<int64_t>(rows / 6 * 6, 6, kEstimateRows));
}

Scratch take_scratch(const EstimateCall& call, Workspace<>& arena) {
  const bool lines = has_lines(call.p.pattern);
  const bool flex = call.p.pattern.kind == TSP_PATTERN_FLEXPREFILL;
  const int32_t segments = call.segments(call.map_queries());
  const int64_t blocks = key_blocks(call);
  const int64_t map = flex ? blocks * blocks : 0;
  const int64_t values = std::max({blocks, map, lines ? int64_t{call.longest} : 0});
  const int64_t tile_rows = lines && !flex ? line_tile_rows(call) : kEstimateRows;
  const int64_t map_weights = kEstimateRows * (blocks + 16);
  Scratch s;
  s.kernel = arena.take<unsigned char>(call.k.estimate_scratch_bytes(call.dim, segments));
  s.q_offset = arena.take<int64_t>(segments * kEstimateRows);
  s.means = arena.take<float>(call.mean_floats);
  s.weights =
      arena.take<float>(lines ? std::max(map_weights, line_tile_rows(call) * weight_stride(call))
                              : tile_rows * weight_stride(call));
  s.mass = arena.take<float>(blocks_in_item(call) * blocks);
  s.joint = arena.take<float>(call.p.pattern.kind == TSP_PATTERN_FLASH ? blocks : 0);
  s.columns = arena.take<float>(lines ? call.longest : 0);
  s.slashes = arena.take<float>(lines ? call.longest : 0);
  s.guess = arena.take<float>(flex ? blocks : 0);
  s.map = arena.take<float>(map);
  s.marks = arena.take<uint8_t>(map);
  s.choice = {arena.take<uint64_t>(values), arena.take<int32_t>(values),
              arena.take<uint8_t>(values), arena.take<float>(blocks)};
  return s;
}

/// A block set of a sequence; `keys` are the packed keys of its group's first unit.
struct Set {
  const EstimateCall& call;
  int32_t b;
  int32_t set;
  int32_t first_unit;  // of the group
  const unsigned char* keys;

  int32_t num_heads() const {
    return static_cast<int32_t>(call.p.q.heads / call.p.blocks.num_sets);
  }
  /// Calls fn(head, unit, keys of the unit) for every head, ascending.
  template <typename Fn>
  void for_each_head(Fn&& fn) const {
    const auto per_unit = static_cast<int32_t>(call.p.q.heads / call.units);
    for (int32_t i = 0; i < num_heads(); ++i) {
      const int32_t head = set * num_heads() + i;
      const int32_t unit = head / per_unit;
      fn(head, call.unit(b, unit), keys + static_cast<size_t>(unit - first_unit) * call.unit_bytes);
    }
  }
  BlockRows rows() const {
    return call.unit(b, set * num_heads() / static_cast<int32_t>(call.p.q.heads / call.units)).rows;
  }
};

EstimateTile new_tile(const EstimateCall& call, const Scratch& s, const void* panels,
                      int64_t stride) {
  EstimateTile tile{};
  tile.scale_log2 = call.p.scale * 1.4426950408889634f;
  tile.k_panels = panels;
  tile.weights = s.weights;
  tile.weight_stride = stride;
  tile.scratch = s.kernel;
  return tile;
}

/// mass[n] += the weights of row `hi` keys long, `per_block` keys to a block.
void add_blocks(const float* weights, int32_t hi, int32_t per_block, float* mass) {
  for (int32_t j = 0; j < hi; j += per_block) {
    float sum = 0;
    for (int32_t i = j; i < std::min(j + per_block, hi); ++i) sum += weights[i];
    mass[j / per_block] += sum;
  }
}

/// Key blocks that end at or before query entry i.
int32_t seen_blocks(const BlockRows& rows, int32_t i) {
  return (rows.first_query + i + 1) / rows.block;
}

/// One softmax over the rows of a query block, of a softmax each.
class JointRows {
 public:
  JointRows(float* mass, int32_t n) : mass_(mass), n_(n) { begin(); }
  void begin() {
    std::fill_n(mass_, n_, 0.0f);
    top_ = -std::numeric_limits<float>::infinity();
    total_ = 0;
  }
  /// A row's weights and their common divisor, sum * 2^top.
  void add(const float* weights, int32_t count, float top, float sum) {
    if (top > top_) {
      const float factor = std::exp2(top_ - top);
      for (int32_t n = 0; n < n_; ++n) mass_[n] *= factor;
      total_ *= factor;
      top_ = top;
    }
    const float share = sum * std::exp2(top - top_);
    for (int32_t n = 0; n < count; ++n) mass_[n] += weights[n] * share;
    total_ += share;
  }
  void end(float* mass, int32_t count) const {
    for (int32_t n = 0; total_ != 0 && n < count; ++n) mass[n] += mass_[n] / total_;
  }

 private:
  float* mass_;
  int32_t n_;
  float top_ = 0, total_ = 0;
};

/// Masses of the query blocks m0 .. m1 - 1 of a set, `stride` floats apart.
void mass_of(const Set& set, int32_t m0, int32_t m1, const Scratch& s, float* mass,
             int64_t stride) {
  const EstimateCall& call = set.call;
  const Source queries = call.map_queries();
  const int32_t key_step = call.step(call.map_keys());
  const int32_t per_block = call.p.pattern.block / key_step;
  const int32_t in_block = rows_in_block(call, queries);
  const BlockRows rows = set.rows();
  const int32_t end = std::min(m1 * in_block, ceil_div(rows.num_queries(), call.step(queries)));
  for (int32_t m = m0; m < m1; ++m) std::fill_n(mass + (m - m0) * stride, rows.visible(m), 0.0f);
  set.for_each_head([&](int32_t head, const KeyUnit& unit, const unsigned char* keys) {
    EstimateTile tile = new_tile(call, s, keys, ceil_div(ceil_div(rows.count, key_step), 16) * 16);
    if (queries == Source::kGroups) tile.scale_log2 /= static_cast<float>(call.p.pattern.stride);
    JointRows joint(s.joint, queries == Source::kEntries ? rows.num_key_blocks() : 0);
    for (int32_t first = m0 * in_block; first < end; first += kEstimateRows) {
      const int32_t count = std::min(kEstimateRows, end - first);
      give_rows(call, unit, head, queries, rows.first_query, first, count, s.means, s.q_offset,
                tile);
      for (int32_t r = 0; r < count; ++r) {
        const int32_t group_end = rows.first_query + (first + r + 1) * key_step;
        tile.hi[r] = queries == Source::kGroups
                         ? (std::min(group_end, rows.count) - 1) / key_step + 1
                     : queries == Source::kEntries ? std::max(1, seen_blocks(rows, first + r))
                                                   : rows.visible((first + r) / in_block);
      }
      call.k.softmax_rows(tile);
      for (int32_t r = 0; r < count; ++r) {
        const float* const weights = s.weights + r * tile.weight_stride;
        const int32_t m = (first + r) / in_block;
        float* const of_block = mass + (m - m0) * stride;
        if (queries != Source::kEntries) {
          add_blocks(weights, tile.hi[r], per_block, of_block);
          continue;
        }
        if ((first + r) % in_block == 0) joint.begin();
        const int32_t seen = seen_blocks(rows, first + r);
        if (seen > 0) joint.add(weights, seen, tile.tops[r], tile.sums[r]);
        if ((first + r + 1) % in_block == 0 || first + r + 1 == end) {
          joint.end(of_block, rows.visible(m));
        }
      }
    }
  });
  for (int32_t m = m0; m < m1; ++m) {
    const int32_t count = std::min(in_block, end - m * in_block);
    const int32_t parts = queries == Source::kEntries ? 1 : count;
    const float factor = 1.0f / static_cast<float>(parts * set.num_heads());
    for (int32_t n = 0; n < rows.visible(m); ++n) mass[(m - m0) * stride + n] *= factor;
  }
}

/// Columns and slashes of the last queries.
void sum_lines(const Set& set, const BlockRows& rows, const Scratch& s) {
  const EstimateCall& call = set.call;
  const int32_t n = rows.count;
  const int32_t count = line_rows(call.p.pattern, rows);
  const int32_t step = line_tile_rows(call);
  std::fill_n(s.columns, n, 0.0f);
  std::fill_n(s.slashes, n, 0.0f);
  set.for_each_head([&](int32_t head, const KeyUnit& unit, const unsigned char* keys) {
    EstimateTile tile = new_tile(call, s, keys + call.map_bytes, ceil_div(n, 16) * 16);
    for (int32_t first = 0; first < count; first += step) {
      give_rows(call, unit, head, Source::kEntries, n - count, first, std::min(step, count - first),
                s.means, s.q_offset, tile);
      for (int32_t r = 0; r < tile.num_rows; ++r) tile.hi[r] = n - count + first + r + 1;
      call.k.softmax_rows(tile);
      for (int32_t r = 0; r < tile.num_rows; ++r) {
        const float* const weights = s.weights + r * tile.weight_stride;
        call.k.add_row(weights, tile.hi[r], s.columns);
        // Distances fall along a row: their sums stand in reverse order until all rows are in.
        call.k.add_row(weights, tile.hi[r], s.slashes + (n - tile.hi[r]));
      }
    }
  });
  std::reverse(s.slashes, s.slashes + n);
  const float factor = 1.0f / static_cast<float>(count * set.num_heads());
  for (int32_t t = 0; t < n; ++t) s.columns[t] *= factor;
  for (int32_t t = 0; t < n; ++t) s.slashes[t] *= factor;
}

/// What the mean of the last queries gives every block.
void guess_blocks(const Set& set, const BlockRows& rows, const Scratch& s) {
  const EstimateCall& call = set.call;
  const int32_t blocks = rows.num_key_blocks();
  const int32_t begin = rows.count - line_rows(call.p.pattern, rows);
  std::fill_n(s.guess, blocks, 0.0f);
  set.for_each_head([&](int32_t head, const KeyUnit& unit, const unsigned char* keys) {
    EstimateTile tile = new_tile(call, s, keys, ceil_div(blocks, 16) * 16);
    give_rows(call, unit, head, Source::kMeans, begin, 0, 1, s.means, s.q_offset, tile);
    tile.hi[0] = blocks;
    call.k.softmax_rows(tile);
    for (int32_t n = 0; n < blocks; ++n) s.guess[n] += s.weights[n];
  });
  const float factor = 1.0f / static_cast<float>(set.num_heads());
  for (int32_t n = 0; n < blocks; ++n) s.guess[n] *= factor;
}

void choose_by_lines(const Set& set, const BlockRows& rows, const Scratch& s,
                     const BlockWriter& out) {
  const tsp_pattern_t& pattern = set.call.p.pattern;
  const Lines lines = {s.columns, s.slashes};
  sum_lines(set, rows, s);
  if (pattern.kind == TSP_PATTERN_MINFERENCE) {
    choose_vertical_slash(pattern, rows, lines, s.choice, out);
    return;
  }
  guess_blocks(set, rows, s);
  PooledRows pooled = {nullptr, rows.num_key_blocks()};
  if (pooled_fits(pattern, rows, lines, s.guess)) {
    pooled.mass = s.map;
    const int32_t step = blocks_in_item(set.call);
    for (int32_t m = 0; m < rows.num_query_blocks(); m += step) {
      mass_of(set, m, std::min(m + step, rows.num_query_blocks()), s, s.map + m * pooled.row_stride,
              pooled.row_stride);
    }
  }
  choose_flexprefill(pattern, rows, lines, pooled, s.choice, s.marks, out);
}

/// Item `index` of a set: some query blocks, or all of them where lines decide.
void choose_item(const Set& set, int32_t index, const Scratch& s) {
  const tsp_pattern_t& pattern = set.call.p.pattern;
  const BlockRows rows = set.rows();
  const BlockWriter out(set.call.p.blocks, set.b, set.set);
  if (rows.num_queries() == 0) return;
  if (has_lines(pattern)) {
    if (reads_everything(pattern, rows)) {
      out.write_everything(rows);
    } else {
      choose_by_lines(set, rows, s, out);
    }
    return;
  }
  const int32_t step = blocks_in_item(set.call);
  const int32_t m0 = index * step;
  const int32_t m1 = std::min(m0 + step, rows.num_query_blocks());
  if (m0 >= m1) return;
  const int64_t stride = rows.num_key_blocks();
  mass_of(set, m0, m1, s, s.mass, stride);
  for (int32_t m = m0; m < m1; ++m) {
    choose_row(pattern, set_threshold(pattern, set.set), rows, m, s.mass + (m - m0) * stride,
               s.choice, out);
  }
}

/// Groups of a wave: as many as fit.
int32_t groups_in_wave(const EstimateCall& call) {
  const size_t bytes = static_cast<size_t>(call.units / call.groups) * call.unit_bytes;
  const int64_t fit = bytes == 0 ? 1 : static_cast<int64_t>(kWaveBytes / bytes);
  return static_cast<int32_t>(
      std::clamp<int64_t>(fit, 1, int64_t{call.p.batch.num_seqs} * call.groups));
}

void pack_unit(const EstimateCall& call, const KeyUnit& unit, int64_t panel, unsigned char* keys,
               float* means) {
  if (unit.rows.num_queries() == 0) return;
  const auto index = static_cast<int32_t>(panel);
  if (call.has_map()) pack_panel(call, unit, call.map_keys(), index, keys, means);
  if (has_lines(call.p.pattern)) {
    pack_panel(call, unit, Source::kEntries, index, keys + call.map_bytes, means);
  }
}

}  // namespace

size_t estimate_workspace(const tsp_context_t& ctx, const tsp_estimate_params_t& p) {
  const EstimateCall call(ctx, p);
  Workspace<> arena(nullptr);
  arena.take<unsigned char>(static_cast<size_t>(groups_in_wave(call) * (call.units / call.groups)) *
                            call.unit_bytes);
  for (int32_t t = 0; t < ctx.threads->size(); ++t) take_scratch(call, arena);
  return arena.used();
}

tsp_status_t estimate(tsp_context_t& ctx, const tsp_estimate_params_t& p) {
  const EstimateCall call(ctx, p);
  Workspace<> arena(p.workspace);
  const int32_t wave = groups_in_wave(call);
  const int32_t units = call.units / call.groups;  // of a group
  const int32_t sets = p.blocks.num_sets / call.groups;
  auto* const packed =
      arena.take<unsigned char>(static_cast<size_t>(wave * units) * call.unit_bytes);
  const size_t begin = arena.used();
  const size_t thread_bytes = [&] {
    Workspace<> one(nullptr);
    take_scratch(call, one);
    return one.used();
  }();
  const auto scratch_of = [&](int32_t thread) {
    Workspace<> own(static_cast<unsigned char*>(p.workspace) + begin +
                    static_cast<size_t>(thread) * thread_bytes);
    return take_scratch(call, own);
  };
  const int32_t panel_step = has_lines(p.pattern) ? 1 : call.step(call.map_keys());
  const int64_t panels = ceil_div(ceil_div(call.longest, panel_step), call.k.panel_keys);
  const int64_t items = has_lines(p.pattern) ? 1
                                             : ceil_div(ceil_div(call.longest, p.pattern.block),
                                                        blocks_in_item(call));
  const int64_t num_groups = int64_t{p.batch.num_seqs} * call.groups;
  for (int64_t first = 0; first < num_groups; first += wave) {
    const int64_t count = std::min<int64_t>(wave, num_groups - first);
    for_each_item(ctx, count * units * panels, [&](int64_t item, int32_t thread) {
      const int64_t slot = item / panels;  // a unit of the wave
      const int64_t group = first + slot / units;
      const KeyUnit unit =
          call.unit(static_cast<int32_t>(group / call.groups),
                    static_cast<int32_t>(group % call.groups * units + slot % units));
      pack_unit(call, unit, item % panels, packed + static_cast<size_t>(slot) * call.unit_bytes,
                scratch_of(thread).means);
    });
    for_each_item(ctx, count * sets * items, [&](int64_t item, int32_t thread) {
      const int64_t local = item / items;  // a set of the wave
      const int64_t group = first + local / sets;
      const auto in_seq = static_cast<int32_t>(group % call.groups);
      const Set set = {call, static_cast<int32_t>(group / call.groups),
                       static_cast<int32_t>(in_seq * sets + local % sets), in_seq * units,
                       packed + static_cast<size_t>(local / sets * units) * call.unit_bytes};
      // The longest rows first: the threads wait for the last item.
      choose_item(set, static_cast<int32_t>(items - 1 - item % items), scratch_of(thread));
    });
  }
  return TSP_OK;
}

}  // namespace tsp::cpu
