// SPDX-License-Identifier: MIT
// One wrapper per instruction of products on sm_80 and later: ldmatrix, mma.sync. And the swizzle
// that keeps ldmatrix free of bank conflicts.
#pragma once

#include "cuda/ptx.cuh"

namespace tsp::cuda {

/// 16-byte chunk `chunk` of row `row` in a tile whose rows have kChunks chunks: the low three bits
/// are exchanged with the row's, so eight rows of one column lie in eight different bank groups.
template <int kChunks>
__device__ __forceinline__ int swizzled(int row, int chunk) {
  return row * kChunks + (chunk ^ (row & 7));
}

/// Shared address of a lane's chunk in row `row`, for chunk = `low` (0 or 1) + an even number added
/// by `at_chunk`: one exclusive or instead of an address in a register per chunk.
template <int kChunks>
__device__ __forceinline__ uint32_t lane_address(uint32_t tile, int row, int low) {
  return tile + static_cast<uint32_t>(row * kChunks + (low ^ (row & 7))) * 16;
}
__device__ __forceinline__ uint32_t at_chunk(uint32_t lane_address, int even_chunk) {
  return lane_address ^ static_cast<uint32_t>(even_chunk * 16);
}

/// ldmatrix.x4: four 8 x 8 matrices of 16-bit elements.
__device__ __forceinline__ void load_matrix(uint32_t (&r)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared));
}
/// ldmatrix.x4.trans
__device__ __forceinline__ void load_matrix_transposed(uint32_t (&r)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared));
}

/// mma.sync.m16n8k16, f32 accumulators: c += a b.
template <typename Type>
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1);
template <>
__device__ __forceinline__ void mma<Bf16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                          uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void mma<F16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace tsp::cuda
