// SPDX-License-Identifier: MIT
#include "adapters/ggml/int8/int8_engine.h"

#include <algorithm>
#include <atomic>

#include "adapters/ggml/int8/layout.h"

namespace tsp::ggml_adapter {
namespace {

using int8::ceil_div;
using int8::groups_of;
using int8::kGroup;
using int8::kPanelGroupBytes;
using int8::kPanelRows;
using int8::kTileGroupBytes;
using int8::kTileRows;

// Values of a row of a weight that are dequantised at once. Blocks of all types fit into it, and 32
// rows of it, packed, into a first-level cache.
constexpr int64_t kChunk = 512;
static_assert(kChunk % kGroup == 0 && kChunk % 256 == 0);

// A pass over the rows keeps a panel and as many tiles as fit in a core's second-level cache,
// 1 MiB on the processors that have the instructions.
constexpr int64_t kMaxPassGroups = 48;  // 204 KiB of a panel
constexpr int64_t kTileBytesAtOnce = int64_t{400} << 10;

// Groups of a pass, even ones.
int64_t pass_of(int64_t groups) { return ceil_div(groups, ceil_div(groups, kMaxPassGroups)); }

/// What a tile at `row` of `rows` fetches of the next panel into the second-level cache. The first
/// tile would else wait for all of it: products of K 896 and 192 rows, 5 % of the time (one thread,
/// 2 cores AMD EPYC Zen 5, 2026-11-27).
inline void prefetch_share(const uint8_t* next, int64_t bytes, int64_t row, int64_t rows) {
  if (next == nullptr) return;
  const int64_t end = bytes * std::min(rows, row + kTileRows) / rows;
  for (int64_t at = bytes * row / rows; at < end; at += 64) __builtin_prefetch(next + at, 0, 2);
}

// Rows whose gated products wait, in f32, to be quantised: 192 KiB of a thread's stack.
constexpr int64_t kGatedRows = 32 * kTileRows;
static_assert(kGroup % kPanelRows == 0);

}  // namespace

std::unique_ptr<Int8Engine> Int8Engine::create(int32_t threads, tsp_parallel_fn parallel,
                                               void* parallel_user, std::string& why) {
  const int8::Kernels* kernels = int8::best_kernels();
  if (kernels == nullptr) {
    why = "this processor has neither AVX512-VNNI nor AVX-VNNI (dot product of 8-bit integers)";
    return nullptr;
  }
  return std::make_unique<Int8Engine>(*kernels, threads, parallel, parallel_user);
}

size_t Int8Engine::weight_bytes(int64_t rows, int64_t k) const {
  return static_cast<size_t>(ceil_div(rows, kPanelRows) * int8::panel_bytes(k));
}

size_t Int8Engine::input_bytes(int64_t rows, int64_t k) const {
  return static_cast<size_t>(ceil_div(rows, kTileRows) * int8::tile_bytes(k));
}

void Int8Engine::read_weights(const PackedRows& rows, void* out) {
  using Read = void (*)(const void*, float*, int64_t);
  const Read own = kernels_.reader(rows.type);
  const Read read = own != nullptr ? own : rows.to_float;
  const int64_t k = rows.k;
  const auto row_bytes = static_cast<int64_t>(rows.row_bytes);
  for_each(ceil_div(rows.count, kPanelRows), [&](int64_t panel) {
    alignas(64) float values[kChunk];
    const int64_t first = panel * kPanelRows;
    uint8_t* groups = static_cast<uint8_t*>(out) + panel * int8::panel_bytes(k);
    for (int64_t begin = 0; begin < k; begin += kChunk) {
      const int64_t count = std::min(kChunk, k - begin);
      for (int64_t row = 0; row < kPanelRows; ++row) {
        if (first + row < rows.count) {
          const char* packed = static_cast<const char*>(rows.data) + (first + row) * row_bytes;
          read(packed + row_bytes * begin / k, values, count);
        } else {
          std::fill_n(values, count, 0.0f);
        }
        kernels_.pack_panel_row(values, count, row, groups);
      }
      groups += count / kGroup * kPanelGroupBytes;
    }
  });
}

void Int8Engine::read_inputs(const float* rows, int64_t count, int64_t k, void* out) {
  for_each(ceil_div(count, kTileRows), [&](int64_t tile) {
    const int64_t first = tile * kTileRows;
    kernels_.pack_tile(rows + first * k, std::min(kTileRows, count - first), k,
                       static_cast<uint8_t*>(out) + tile * int8::tile_bytes(k));
  });
}

/// Up to a panel's columns of a product of rows that begin with a tile. `next` is the panel that
/// comes next, or null.
void Int8Engine::multiply_panel(const uint8_t* tiles, const uint8_t* panel, const Product& product,
                                float* c, const uint8_t* next) const {
  const int64_t groups = groups_of(product.k), pass = pass_of(groups);
  for (int64_t group = 0; group < groups; group += pass) {
    int8::Part part = {0, product.n, std::min(pass, groups - group), group > 0};
    for (int64_t row = 0; row < product.m; row += kTileRows) {
      part.rows = std::min(kTileRows, product.m - row);
      prefetch_share(next, int8::panel_bytes(product.k), row, product.m);
      kernels_.multiply(
          tiles + row / kTileRows * int8::tile_bytes(product.k) + group * kTileGroupBytes,
          panel + group * kPanelGroupBytes, part, c + row * product.c_stride, product.c_stride);
    }
  }
}

bool Int8Engine::run(const Product& product, const void* inputs, const void* weights, float* c) {
  const int64_t tiles = ceil_div(product.m, kTileRows);
  const int64_t panels = ceil_div(product.n, kPanelRows);
  const int64_t pass_bytes = pass_of(groups_of(product.k)) * kTileGroupBytes;
  const int64_t block = std::max(int64_t{1}, kTileBytesAtOnce / pass_bytes) * kTileRows;
  for_each(ceil_div(tiles * kTileRows, block) * panels, [&](int64_t index) {
    const int64_t column = index % panels * kPanelRows, row = index / panels * block;
    const Product part = {std::min(block, product.m - row),
                          std::min(kPanelRows, product.n - column), product.k, product.c_stride};
    multiply_panel(
        static_cast<const uint8_t*>(inputs) + row / kTileRows * int8::tile_bytes(product.k),
        static_cast<const uint8_t*>(weights) + index % panels * int8::panel_bytes(product.k), part,
        c + row * product.c_stride + column, nullptr);
  });
  return true;
}

void Int8Engine::run_gated(const GatedProduct& product, const void* inputs, const void* gate,
                           const void* up, void* out) {
  const int64_t groups = product.n / kGroup, blocks = ceil_div(product.m, kGatedRows);
  const int64_t panel_bytes = int8::panel_bytes(product.k);
  for_each(blocks * groups, [&](int64_t index) {
    alignas(64) float gated[kGatedRows * kGroup], factors[kGatedRows * kGroup];
    const int64_t group = index % groups, first = index / groups * kGatedRows;
    const Product part = {std::min(kGatedRows, product.m - first), kPanelRows, product.k, kGroup};
    const auto* tiles =
        static_cast<const uint8_t*>(inputs) + first / kTileRows * int8::tile_bytes(product.k);
    for (int64_t column = 0; column < kGroup; column += kPanelRows) {
      const int64_t panel = (group * kGroup + column) / kPanelRows * panel_bytes;
      const auto* const gates = static_cast<const uint8_t*>(gate) + panel;
      const auto* const ups = static_cast<const uint8_t*>(up) + panel;
      const bool last = panel + panel_bytes == product.n / kPanelRows * panel_bytes;
      multiply_panel(tiles, gates, part, gated + column, ups);
      multiply_panel(tiles, ups, part, factors + column, last ? nullptr : gates + panel_bytes);
    }
    uint8_t* at = static_cast<uint8_t*>(out) + first / kTileRows * int8::tile_bytes(product.width) +
                  (product.first / kGroup + group) * kTileGroupBytes;
    for (int64_t row = 0; row < part.m; row += kTileRows) {
      kernels_.pack_gated(gated + row * kGroup, factors + row * kGroup,
                          std::min(kTileRows, part.m - row),
                          at + row / kTileRows * int8::tile_bytes(product.width));
    }
  });
}

/// body(i) for each i in [0, count), whatever the number of threads that come.
void Int8Engine::for_each(int64_t count, const std::function<void(int64_t)>& body) const {
  struct Work {
    std::atomic<int64_t> next{0};
    int64_t count;
    const std::function<void(int64_t)>& body;
  } work{{}, count, body};
  const auto take = [](void* arg, int32_t) {
    auto& shared = *static_cast<Work*>(arg);
    for (int64_t i = shared.next++; i < shared.count; i = shared.next++) shared.body(i);
  };
  if (parallel_ == nullptr || threads_ == 1) {
    take(&work, 0);
  } else {
    parallel_(parallel_user_, threads_, take, &work);
  }
}

}  // namespace tsp::ggml_adapter
