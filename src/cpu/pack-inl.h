// SPDX-License-Identifier: MIT
// From rows of a tensor, wherever they lie, to the layout that the micro-kernel streams: K as
// panels [channel][key], V as rows [key][channel]; bf16 arithmetic takes channels (K) and keys (V)
// in pairs.
#pragma once

#include "cpu/gemm-inl.h"

namespace tsp::cpu {
namespace {

constexpr int32_t kPanelKeys = kLanes * kPanelVecs;
static_assert(kPanelKeys <= kMaxPanelKeys, "PackArgs holds the offsets of one panel");

/// Calls fn<dtype>() with the dtype as a constant.
template <typename Fn>
TSP_INLINE void with_dtype(int32_t dtype, Fn&& fn) {
  if (dtype == 0) {
    fn.template operator()<0>();
  } else if (dtype == 1) {
    fn.template operator()<1>();
  } else {
    fn.template operator()<2>();
  }
}

template <int kDtype>
TSP_INLINE Vec load_as_f32(const void* p) {
  if constexpr (kDtype == 0) return load(static_cast<const float*>(p));
  if constexpr (kDtype == 1) return load_f16(static_cast<const uint16_t*>(p));
  if constexpr (kDtype == 2) return load_bf16(static_cast<const uint16_t*>(p));
}

/// Elements d .. d + kLanes - 1 of the row, zero from `dim` on; nothing beyond the row is read.
template <int kDtype>
TSP_INLINE Vec load_elems(const Rows& rows, int64_t offset, int32_t d) {
  constexpr int64_t kBytes = kDtype == 0 ? 4 : 2;
  const char* const row = static_cast<const char*>(rows.data) + offset * kBytes;
  if (rows.dim_stride == 1 && d + kLanes <= rows.dim) return load_as_f32<kDtype>(row + d * kBytes);
  alignas(64) char buffer[kLanes * kBytes] = {};
  const int32_t count = min32(kLanes, rows.dim - d);
  for (int32_t i = 0; i < count; ++i) {
    __builtin_memcpy(buffer + i * kBytes, row + (d + i) * rows.dim_stride * kBytes, kBytes);
  }
  return load_as_f32<kDtype>(buffer);
}

/// Units of a row of q or K, as many as the products take.
template <typename Arith>
TSP_INLINE int32_t units_of(int32_t dim) {
  return round_up((dim + Arith::kUnitElems - 1) / Arith::kUnitElems, Arith::kDepthUnits);
}

/// Units u .. u + kLanes - 1 of the row, as bits.
template <typename Arith, int kDtype>
TSP_INLINE Vec load_units(const Rows& rows, int64_t offset, int32_t u) {
  if constexpr (Arith::kUnitElems == 1) {
    return load_elems<kDtype>(rows, offset, u);
  } else {
    return Arith::pairs(load_elems<kDtype>(rows, offset, 2 * u),
                        load_elems<kDtype>(rows, offset, 2 * u + kLanes));
  }
}

template <typename Arith>
size_t k_panel_bytes(int32_t dim) {
  return static_cast<size_t>(units_of<Arith>(dim)) * kPanelKeys * 4;
}
template <typename Arith>
size_t v_row_bytes(int32_t dim) {
  return static_cast<size_t>(round_up(dim, kLanes)) * 4 / Arith::kUnitElems;
}

template <typename Arith, int kDtype>
void pack_k(const PackArgs& args) {
  const int32_t num_units = units_of<Arith>(args.k.dim);
  auto* const panel = static_cast<float*>(args.k_panel);
  for (int32_t key = 0; key < args.num_keys; key += kLanes) {
    for (int32_t u = 0; u < num_units; u += kLanes) {
      Vec block[kLanes];
      for (int32_t i = 0; i < kLanes; ++i) {
        block[i] = key + i < args.num_keys
                       ? load_units<Arith, kDtype>(args.k, args.k_offset[key + i], u)
                       : zero();
      }
      transpose(block);
      float* const to = panel + static_cast<int64_t>(u) * kPanelKeys + key;
      const int32_t count = min32(kLanes, num_units - u);
      if (count == kLanes) {
#pragma GCC unroll 16
        for (int32_t i = 0; i < kLanes; ++i) store(to + i * kPanelKeys, block[i]);
      } else {
        for (int32_t i = 0; i < count; ++i) store(to + i * kPanelKeys, block[i]);
      }
    }
  }
}

template <typename Arith, int kDtype>
void pack_v(const PackArgs& args) {
  const int32_t stride = round_up(args.v.dim, kLanes);
  auto* to = static_cast<float*>(args.v_rows);
  for (int32_t key = 0; key < args.num_keys; key += Arith::kUnitElems, to += stride) {
    for (int32_t d = 0; d < stride; d += kLanes) {
      const Vec row = load_elems<kDtype>(args.v, args.v_offset[key], d);
      if constexpr (Arith::kUnitElems == 1) {
        store(to + d, row);
      } else {
        const Vec next = key + 1 < args.num_keys
                             ? load_elems<kDtype>(args.v, args.v_offset[key + 1], d)
                             : zero();
        store(to + d, Arith::interleave(row, next));
      }
    }
  }
}

template <typename Arith>
void pack(const PackArgs& args) {
  with_dtype(args.k.dtype, [&]<int kDtype>() { pack_k<Arith, kDtype>(args); });
  if (args.v_rows == nullptr) return;
  with_dtype(args.v.dtype, [&]<int kDtype>() { pack_v<Arith, kDtype>(args); });
}

/// Query rows to units, row-major, and zero rows up to a multiple of Arith::kRows.
template <typename Arith>
void load_queries(const Rows& q, const int64_t* offset, int32_t num_rows, float* to,
                  int32_t stride) {
  with_dtype(q.dtype, [&]<int kDtype>() {
    for (int32_t r = 0; r < num_rows; ++r) {
      for (int32_t u = 0; u < stride; u += kLanes) {
        store(to + r * stride + u, load_units<Arith, kDtype>(q, offset[r], u));
      }
    }
  });
  for (int32_t r = num_rows; r < round_up(num_rows, Arith::kRows); ++r) {
    for (int32_t u = 0; u < stride; u += kLanes) store(to + r * stride + u, zero());
  }
}

}  // namespace
}  // namespace tsp::cpu
