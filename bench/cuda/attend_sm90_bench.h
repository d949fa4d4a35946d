// SPDX-License-Identifier: MIT
// The stand-alone check and timing of the warpgroup attention kernel: what its parts share.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "cuda/attend/sm90/attend_sm90.h"

namespace tsp::cuda {

inline void must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

/// Standard normal values times `sigma`, rounded to bf16 or f16.
void fill_normal(uint16_t* data, int64_t count, uint32_t seed, float sigma, bool bf16);
/// Every element to `bits`.
void fill_bits(uint16_t* data, int64_t count, uint16_t bits);

/// Rows of the answer in f32, by plain loops: out [num_rows, Hq, D] and lse [num_rows, Hq] of the
/// list entries rows[0..). `round_weights`: P and the result are rounded to 16 bits, as a plain
/// implementation would.
struct ReferenceArgs {
  AttendSm90Params p;
  const int32_t* rows;  // [num_rows] offsets from the first query entry
  int32_t num_rows;
  bool round_weights;
  float* out;
  float* lse;
};
void run_reference(const ReferenceArgs& args);

struct Difference {
  double norm;      // |a - b| / |b|
  double largest;   // largest |a - b|
  double lse;       // largest difference of the log-sum-exp
  int64_t missing;  // values that are not finite, or were never written
  int64_t strayed;  // values outside the rows of the sets that were written
};
/// Compares the kernel's output with reference rows. `poison`: what out held before.
Difference compare(const ReferenceArgs& args, const uint16_t* got, const float* got_lse);

}  // namespace tsp::cuda
