// SPDX-License-Identifier: MIT
// What an instruction set brings: a table of leaf kernels on plain structs. The drivers (attend.cc,
// score.cc) know tensors, sets and threads; the kernels know registers. Each table is filled by one
// translation unit with its own compiler flags (kernels_<isa>.cc). Only data crosses the border:
// this header holds nothing inline, so no unit can hand another one code in its own instructions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tsp::cpu {

constexpr int32_t kTileRows = 48;      // query rows of an attend tile; a multiple of every kernel's
                                       // 6 rows
constexpr int32_t kScoreRows = 24;     // window rows that share one pass over the keys
constexpr int32_t kEstimateRows = 48;  // rows of an estimate that share one pass over the keys
constexpr int32_t kMaxPanelKeys = 64;  // keys in a packed K panel, at most
constexpr int32_t kMaxBlockKeys = 512;  // keys between two updates of a row's running maximum
constexpr int32_t kMaxSpans = kMaxBlockKeys / 16;  // of them; no panel is shorter

/// Rows of a tensor: row i starts at element offset[i] and has `dim` elements dim_stride apart.
struct Rows {
  const void* data;
  int32_t dtype;
  int32_t dim;
  int64_t dim_stride;
};

/// Packed K is panels of `panel_keys` keys, channel-major within a panel; packed V is one row a key
/// (bf16 arithmetic: channels, resp. keys, in pairs). Everything beyond the keys given is zero.
struct PackArgs {
  Rows k;
  Rows v;
  int64_t k_offset[kMaxPanelKeys];
  int64_t v_offset[kMaxPanelKeys];
  int32_t num_keys;  // <= panel_keys
  void* k_panel;
  void* v_rows;  // null: only K
};

/// Up to kTileRows query rows; row i sees the packed keys lo[i] .. hi[i] - 1. lo and hi never fall
/// from a row to the next.
struct Tile {
  Rows q;
  int32_t num_rows;
  int32_t num_ahead;  // rows of q that are asked for beside those of out; negative: neither
  float scale_log2;   // scale * log2(e)
  int32_t out_dtype;
  void* out;
  int64_t out_dim_stride;
  float* lse;     // null: not wanted
  void* scratch;  // tile_scratch_bytes(dim), 64-byte aligned
  int64_t q_offset[kTileRows];
  int64_t out_offset[kTileRows];
  int64_t lse_offset[kTileRows];
  int64_t ahead_offset[kTileRows];
  int32_t lo[kTileRows];
  int32_t hi[kTileRows];
};

/// Rows of the score window against every key; hi[i] keys are visible to row i.
struct ScoreTile {
  Rows q;
  int32_t num_rows;  // <= kScoreRows
  float scale_log2;
  float row_weight;     // 1 / window
  int32_t num_columns;  // prefix tokens
  bool first;           // write the columns instead of adding to them
  const void* k_panels;
  float* columns;  // [num_columns rounded up to 16]
  void* scratch;   // score_scratch_bytes(dim, keys)
  int64_t q_offset[kScoreRows];
  int32_t hi[kScoreRows];
};

/// Rows whose softmax weights are wanted; row i sees the packed keys 0 .. hi[i] - 1, and hi never
/// falls. With several segments a row is that many rows of q side by side, a panel that many
/// panels.
struct EstimateTile {
  Rows q;
  int32_t num_rows;
  int32_t num_segments;
  float scale_log2;
  const void* k_panels;
  const int64_t* q_offset;  // [num_segments, kEstimateRows]; negative: zeros
  float* weights;           // [num_rows, weight_stride]; weight_stride: keys, rounded up to 16
  int64_t weight_stride;
  void* scratch;  // estimate_scratch_bytes(dim, num_segments), 64-byte aligned
  int32_t hi[kEstimateRows];
  // Out: the weights' common divisor is sums * 2^tops.
  float tops[kEstimateRows];
  float sums[kEstimateRows];
};

/// Packed keys: how many, and where their panels and value rows start.
struct KeySpan {
  int32_t num_keys;
  const void* k_panels;
  const void* v_rows;
};

struct Kernels {
  int32_t panel_keys;
  int32_t block_keys;
  size_t (*k_panel_bytes)(int32_t dim);
  size_t (*v_row_bytes)(int32_t dim);  // of one key; two keys together in bf16 arithmetic
  size_t (*tile_scratch_bytes)(int32_t dim);
  void (*pack)(const PackArgs& args);
  void (*tile_begin)(const Tile& tile);
  /// Keys n0 .. as lo and hi count them, n0 a multiple of panel_keys: spans one behind the other,
  /// all but the last of whole panels, together at most block_keys, at most kMaxSpans.
  void (*tile_block)(const Tile& tile, int32_t n0, const KeySpan* spans, int32_t num_spans);
  void (*tile_end)(const Tile& tile);

  size_t (*score_scratch_bytes)(int32_t dim, int32_t keys);
  void (*score_tile)(const ScoreTile& tile);

  size_t (*estimate_scratch_bytes)(int32_t dim, int32_t num_segments);
  void (*softmax_rows)(EstimateTile& tile);
  /// sum[i] += row[i].
  void (*add_row)(const float* row, int32_t count, float* sum);
  /// sum[d] += the rows at offset[0 .. count - 1], one after the other.
  void (*sum_rows)(const Rows& rows, const int64_t* offset, int32_t count, float* sum);
};

extern const Kernels kernels_scalar;
extern const Kernels kernels_neon;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512_bf16;
extern const Kernels kernels_amx_bf16;
extern const Kernels kernels_amx_emulated;  // in builds for tests

}  // namespace tsp::cpu
