// SPDX-License-Identifier: MIT
// Where an estimate's rows and keys come from: entries side by side (antidiagonals), entries as
// they are, or means of blocks.
#pragma once

#include "core/block_choice.h"
#include "cpu/ops.h"

namespace tsp::cpu {

enum class Source {
  kGroups,   // `stride` entries side by side, queries in reverse order
  kEntries,  // every entry
  kMeans,    // the mean of a block
};

/// Keys that share entries: a KV head and an index set of one sequence.
struct KeyUnit {
  Seq seq;
  BlockRows rows;
  int32_t kv_head;
};

struct EstimateCall {
  const tsp_estimate_params_t& p;
  const Kernels& k;
  int32_t dim;
  int32_t longest;    // Tk
  int32_t units;      // key units of a sequence
  int32_t groups;     // of key units and block sets that need each other, of a sequence
  size_t unit_bytes;  // packed keys of a unit: [map][lines]
  size_t map_bytes;
  int32_t mean_floats;  // of a thread: means on their way to panels or rows

  EstimateCall(const tsp_context_t& ctx, const tsp_estimate_params_t& params);
  /// What the keys and the query rows of the map are.
  Source map_keys() const {
    return p.pattern.kind == TSP_PATTERN_XATTENTION ? Source::kGroups : Source::kMeans;
  }
  Source map_queries() const {
    return p.pattern.kind == TSP_PATTERN_FLASH ? Source::kEntries : map_keys();
  }
  /// Entries that one row or key stands for.
  int32_t step(Source source) const {
    return source == Source::kGroups    ? p.pattern.stride
           : source == Source::kEntries ? 1
                                        : p.pattern.block;
  }
  int32_t segments(Source source) const { return source == Source::kGroups ? step(source) : 1; }
  bool has_map() const { return p.pattern.kind != TSP_PATTERN_MINFERENCE; }
  size_t panel_bytes(Source source) const {
    return static_cast<size_t>(segments(source)) * k.k_panel_bytes(dim);
  }
  size_t source_bytes(Source source) const {
    return align64(static_cast<size_t>(ceil_div(ceil_div(longest, step(source)), k.panel_keys)) *
                   panel_bytes(source));
  }
  KeyUnit unit(int32_t b, int32_t index) const;
};

/// Packs panel `index` of a unit's keys; `means`: call.mean_floats.
void pack_panel(const EstimateCall& call, const KeyUnit& unit, Source source, int32_t index,
                unsigned char* panels, float* means);

/// Query rows first .. first + count - 1 (count <= kEstimateRows) of a head into tile.q and
/// q_offset ([stride, kEstimateRows]), from query entry `base` on.
void give_rows(const EstimateCall& call, const KeyUnit& unit, int32_t head, Source source,
               int32_t base, int32_t first, int32_t count, float* means, int64_t* q_offset,
               EstimateTile& tile);

}  // namespace tsp::cpu
