// SPDX-License-Identifier: MIT
#include "bench/floor.h"

#include <algorithm>
#include <cstring>
#include <latch>
#include <thread>
#include <vector>

#include "bench/peak.h"
#include "bench/timing.h"
#include "bench/workload.h"
#if defined(__x86_64__)
#include "core/tile_permission.h"
#endif

namespace tsp::bench {
namespace {

constexpr int kTrials = 5;
constexpr double kTrialSeconds = 0.015;
constexpr size_t kMemoryBytes = size_t{96} << 20;   // of one buffer: far beyond most L3 caches
constexpr size_t kCachedBytes = size_t{192} << 10;  // of one buffer and thread: fits L2

/// Runs fn(thread) on all threads at once; seconds from the common start to the last end.
template <typename Fn>
double run_together(int threads, Fn fn) {
  std::latch ready(threads + 1);
  std::vector<std::thread> pool;
  for (int i = 0; i < threads; ++i) {
    pool.emplace_back([&, i] {
      ready.arrive_and_wait();
      fn(i);
    });
  }
  return seconds_of([&] {
    ready.arrive_and_wait();
    for (std::thread& thread : pool) thread.join();
  });
}

double measure_peak(PeakKernel kernel, int threads) {
  float sink = 0.5f;
  int64_t rounds = 10000;
  while (seconds_of([&] { kernel(rounds, &sink); }) < kTrialSeconds) rounds *= 2;
  double best = 0;
  for (int trial = 0; trial < kTrials; ++trial) {
    std::vector<double> flops(static_cast<size_t>(threads));
    const double seconds = run_together(threads, [&](int i) {
      float own = 0.5f;
      flops[static_cast<size_t>(i)] = kernel(rounds, &own);
    });
    best = std::max(best, flops[0] * threads / seconds);
  }
  return best / 1e9;
}

double measure_memory_copy(int threads) {
  const Buffer from(kMemoryBytes), to(kMemoryBytes);
  const size_t part = kMemoryBytes / static_cast<size_t>(threads);
  double best = 0;
  for (int trial = 0; trial < kTrials; ++trial) {
    const double seconds = run_together(threads, [&](int i) {
      const size_t at = static_cast<size_t>(i) * part;
      std::memcpy(static_cast<char*>(to.data()) + at, static_cast<char*>(from.data()) + at, part);
    });
    best = std::max(best, 2 * static_cast<double>(part) * threads / seconds);
  }
  return best / 1e9;
}

double measure_cached_copy(int threads) {
  constexpr int kRounds = 500;
  std::vector<Buffer> buffers;
  for (int i = 0; i < 2 * threads; ++i) buffers.emplace_back(kCachedBytes);
  double best = 0;
  for (int trial = 0; trial < kTrials; ++trial) {
    const double seconds = run_together(threads, [&](int i) {
      void* a = buffers[static_cast<size_t>(2 * i)].data();
      void* b = buffers[static_cast<size_t>(2 * i + 1)].data();
      for (int round = 0; round < kRounds; ++round) {
        std::memcpy(a, b, kCachedBytes);
        std::swap(a, b);
      }
    });
    best = std::max(best, 2.0 * kCachedBytes * kRounds * threads / seconds);
  }
  return best / 1e9;
}

}  // namespace

double Floor::seconds(const Work& work, tsp_precision_t precision) const {
  const bool in_cache = work.bytes <= 2.0 * kCachedBytes * threads;
  return std::max(work.flops / (peak_gflops(precision) * 1e9),
                  work.bytes / ((in_cache ? cached_gbs : copy_gbs) * 1e9));
}

double measure_f32_gflops(const std::string& isa, int threads) {
  return measure_peak(f32_peak_kernel(isa.c_str()), threads);
}

double measure_int8_gops(int threads) {
#if defined(__x86_64__)
  if (may_use_tiles(TileProducts::kInt8)) return measure_peak(peak_amx_int8, threads);
  if (__builtin_cpu_supports("avx512vnni")) return measure_peak(peak_avx512_vnni, threads);
#endif
  (void)threads;
  return 0;
}

Floor measure_floor(const std::string& isa, int threads) {
  Floor floor;
  floor.isa = isa;
  floor.threads = threads;
  floor.f32_gflops = measure_f32_gflops(isa, threads);
  if (const PeakKernel kernel = bf16_peak_kernel(isa.c_str())) {
    floor.bf16_gflops = measure_peak(kernel, threads);
  }
  floor.copy_gbs = measure_memory_copy(threads);
  floor.cached_gbs = measure_cached_copy(threads);
  return floor;
}

}  // namespace tsp::bench
