// SPDX-License-Identifier: MIT
#include "adapters/ggml/panels/panel_engine.h"

#include <algorithm>

namespace tsp::ggml_adapter {
namespace {

using panels::kGroup;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t groups_of(int64_t k) { return ceil_div(k, kGroup); }

// Values of a row of a weight that are dequantised at once: whole blocks of all types.
constexpr int64_t kChunk = 512;
static_assert(kChunk % kGroup == 0 && kChunk % 256 == 0);

// A pass over the rows keeps a panel and as many tiles as fit in a core's second-level cache,
// 1 MiB on the processors that have the instructions.
constexpr int64_t kPanelBytesAtOnce = int64_t{208} << 10;
constexpr int64_t kTileBytesAtOnce = int64_t{400} << 10;

/// What a tile at `row` of `rows` fetches of the next panel into the second-level cache. The first
/// tile would else wait for all of it: products of K 896 and 192 rows, 5 % of the time (one thread,
/// 2 cores AMD EPYC Zen 5, 2026-11-27).
inline void prefetch_share(const uint8_t* next, int64_t bytes, int64_t row, int64_t end_row,
                           int64_t rows) {
  if (next == nullptr) return;
  const int64_t end = bytes * std::min(rows, end_row) / rows;
  for (int64_t at = bytes * row / rows; at < end; at += 64) __builtin_prefetch(next + at, 0, 2);
}

/// Around what a thread multiplies.
class Multiplying {
 public:
  explicit Multiplying(const panels::Kernels& kernels) : kernels_(kernels) {
    if (kernels_.begin != nullptr) kernels_.begin();
  }
  Multiplying(const Multiplying&) = delete;
  Multiplying& operator=(const Multiplying&) = delete;
  ~Multiplying() {
    if (kernels_.end != nullptr) kernels_.end();
  }

 private:
  const panels::Kernels& kernels_;
};

// Rows whose gated products wait, in f32, to become activations, whole tiles: 192 KiB of a thread's
// stack.
constexpr int64_t kGatedRows = 192;

}  // namespace

size_t PanelEngine::weight_bytes(int64_t rows, int64_t k) const {
  return static_cast<size_t>(ceil_div(rows, kernels_.panel_rows) * panel_bytes(k));
}

size_t PanelEngine::input_bytes(int64_t rows, int64_t k) const {
  return static_cast<size_t>(ceil_div(rows, kernels_.tile_rows) * tile_bytes(k));
}

int64_t PanelEngine::tile_bytes(int64_t k) const {
  return groups_of(k) * kernels_.tile_group_bytes;
}

int64_t PanelEngine::panel_bytes(int64_t k) const {
  return groups_of(k) * kernels_.panel_group_bytes;
}

/// Groups of a pass, even ones.
int64_t PanelEngine::pass_of(int64_t groups) const {
  return ceil_div(groups, ceil_div(groups * kernels_.panel_group_bytes, kPanelBytesAtOnce));
}

void PanelEngine::read_weights(const PackedRows& rows, void* out) {
  using Read = void (*)(const void*, float*, int64_t);
  const Read own = kernels_.reader(rows.type);
  const Read read = own != nullptr ? own : rows.to_float;
  const int64_t k = rows.k;
  const auto row_bytes = static_cast<int64_t>(rows.row_bytes);
  for_each_item(threads_, ceil_div(rows.count, kernels_.panel_rows), [&](int64_t panel) {
    alignas(64) float values[panels::kPackedRows * kChunk];
    const int64_t first = panel * kernels_.panel_rows;
    uint8_t* groups = static_cast<uint8_t*>(out) + panel * panel_bytes(k);
    for (int64_t begin = 0; begin < k; begin += kChunk) {
      const int64_t count = std::min(kChunk, k - begin);
      for (int64_t row = 0; row < kernels_.panel_rows; ++row) {
        const int64_t place = row % panels::kPackedRows;
        float* const to = values + place * kChunk;
        if (first + row < rows.count) {
          const char* packed = static_cast<const char*>(rows.data) + (first + row) * row_bytes;
          read(packed + row_bytes * begin / k, to, count);
        } else {
          std::fill_n(to, count, 0.0f);
        }
        if (place + 1 < panels::kPackedRows) continue;
        kernels_.pack_panel_rows(values, kChunk, count, row - place, groups);
      }
      groups += count / kGroup * kernels_.panel_group_bytes;
    }
  });
}

void PanelEngine::read_inputs(const float* rows, int64_t count, int64_t k, void* out) {
  for_each_item(threads_, ceil_div(count, kernels_.tile_rows), [&](int64_t tile) {
    const int64_t first = tile * kernels_.tile_rows;
    kernels_.pack_tile(rows + first * k, std::min(kernels_.tile_rows, count - first), k,
                       static_cast<uint8_t*>(out) + tile * tile_bytes(k));
  });
}

/// Up to a panel's columns of a product of rows that begin with a tile. `next` is the panel that
/// comes next, or null.
void PanelEngine::multiply_panel(const uint8_t* tiles, const uint8_t* panel, const Product& product,
                                 float* c, const uint8_t* next) const {
  const int64_t groups = groups_of(product.k), pass = pass_of(groups);
  for (int64_t group = 0; group < groups; group += pass) {
    panels::Part part = {0, product.n, std::min(pass, groups - group), group > 0};
    for (int64_t row = 0; row < product.m; row += kernels_.tile_rows) {
      part.rows = std::min(kernels_.tile_rows, product.m - row);
      prefetch_share(next, panel_bytes(product.k), row, row + kernels_.tile_rows, product.m);
      kernels_.multiply(tiles + row / kernels_.tile_rows * tile_bytes(product.k) +
                            group * kernels_.tile_group_bytes,
                        panel + group * kernels_.panel_group_bytes, part,
                        c + row * product.c_stride, product.c_stride);
    }
  }
}

bool PanelEngine::run(const Product& product, const void* inputs, const void* weights, float* c) {
  const int64_t tiles = ceil_div(product.m, kernels_.tile_rows);
  const int64_t num_panels = ceil_div(product.n, kernels_.panel_rows);
  const int64_t pass_bytes = pass_of(groups_of(product.k)) * kernels_.tile_group_bytes;
  const int64_t block = std::max(int64_t{1}, kTileBytesAtOnce / pass_bytes) * kernels_.tile_rows;
  for_each_item(
      threads_, ceil_div(tiles * kernels_.tile_rows, block) * num_panels, [&](int64_t index) {
        const int64_t column = index % num_panels * kernels_.panel_rows,
                      row = index / num_panels * block;
        const Product part = {std::min(block, product.m - row),
                              std::min(kernels_.panel_rows, product.n - column), product.k,
                              product.c_stride};
        const Multiplying multiplying(kernels_);
        multiply_panel(
            static_cast<const uint8_t*>(inputs) + row / kernels_.tile_rows * tile_bytes(product.k),
            static_cast<const uint8_t*>(weights) + index % num_panels * panel_bytes(product.k),
            part, c + row * product.c_stride + column, nullptr);
      });
  return true;
}

void PanelEngine::run_gated(const GatedProduct& product, const void* inputs, const void* gate,
                            const void* up, void* out) {
  const int64_t groups = product.n / kGroup, blocks = ceil_div(product.m, kGatedRows);
  const int64_t bytes = panel_bytes(product.k);
  for_each_item(threads_, blocks * groups, [&](int64_t index) {
    alignas(64) float gated[kGatedRows * kGroup], factors[kGatedRows * kGroup];
    const int64_t group = index % groups, first = index / groups * kGatedRows;
    const Product part = {std::min(kGatedRows, product.m - first), kernels_.panel_rows, product.k,
                          kGroup};
    const auto* tiles =
        static_cast<const uint8_t*>(inputs) + first / kernels_.tile_rows * tile_bytes(product.k);
    const Multiplying multiplying(kernels_);
    for (int64_t column = 0; column < kGroup; column += kernels_.panel_rows) {
      const int64_t panel = (group * kGroup + column) / kernels_.panel_rows * bytes;
      const auto* const gates = static_cast<const uint8_t*>(gate) + panel;
      const auto* const ups = static_cast<const uint8_t*>(up) + panel;
      const bool last = panel + bytes == product.n / kernels_.panel_rows * bytes;
      multiply_panel(tiles, gates, part, gated + column, ups);
      multiply_panel(tiles, ups, part, factors + column, last ? nullptr : gates + bytes);
    }
    uint8_t* at = static_cast<uint8_t*>(out) +
                  first / kernels_.tile_rows * tile_bytes(product.width) +
                  (product.first / kGroup + group) * kernels_.tile_group_bytes;
    for (int64_t row = 0; row < part.m; row += kernels_.tile_rows) {
      kernels_.pack_gated(gated + row * kGroup, factors + row * kGroup,
                          std::min(kernels_.tile_rows, part.m - row),
                          at + row / kernels_.tile_rows * tile_bytes(product.width));
    }
  });
}

}  // namespace tsp::ggml_adapter
