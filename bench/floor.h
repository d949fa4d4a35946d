// SPDX-License-Identifier: MIT
// What this machine can do at most, measured: arithmetic in registers and copies of memory. An op's
// floor is the longer of its FLOPs over the one and its bytes over the other.
#pragma once

#include <string>

#include "bench/shape.h"

namespace tsp::bench {

struct Floor {
  std::string isa;
  int threads = 0;
  double f32_gflops = 0;
  double bf16_gflops = 0;  // 0: this instruction set multiplies no bf16
  double copy_gbs = 0;     // bytes read and written, buffers larger than the caches
  double cached_gbs = 0;   // the same within the level-2 caches

  double peak_gflops(tsp_precision_t precision) const {
    return precision == TSP_PRECISION_BF16 && bf16_gflops > 0 ? bf16_gflops : f32_gflops;
  }
  /// The least seconds that `work` can take; small work may stay in the caches.
  double seconds(const Work& work, tsp_precision_t precision) const;
};

/// Products of f32 values alone: a quick look at whether the machine is as it was.
double measure_f32_gflops(const std::string& isa, int threads);

/// Products of 8-bit integers alone, 10^9 operations a second; 0 without AMX and AVX512-VNNI.
double measure_int8_gops(int threads);

/// Takes about 0.4 s. Best of a few short runs: a floor is what nothing is faster than.
Floor measure_floor(const std::string& isa, int threads);

}  // namespace tsp::bench
