// SPDX-License-Identifier: MIT
// Medians and spread of things that are measured in turn: A B A B, so that a machine that slows
// down or speeds up does so for all of them.
#pragma once

#include <chrono>
#include <ctime>
#include <functional>
#include <vector>

namespace tsp::bench {

struct Spread {
  double median = 0;
  double min = 0, p25 = 0, p75 = 0, max = 0;
  int samples = 0;
};
/// Quantiles by linear interpolation. `samples` must not be empty.
Spread spread_of(std::vector<double> samples);

struct Budget {
  int repeat = 7;         // at least so many samples of each
  double min_time = 0.5;  // and until each has run for so long, seconds
  double max_time = 60;   // but no more than this, once there are kFewest of each
};
inline constexpr int kFewest = 3;
inline constexpr int kMost = 1000;

/// A contestant does its work once and returns the seconds that count.
using Contestant = std::function<double()>;

/// One warm-up of each that is not counted, then samples in turn.
std::vector<Spread> measure_in_turn(const std::vector<Contestant>& contestants,
                                    const Budget& budget);

template <typename Fn>
double seconds_of(Fn&& fn) {
  const auto start = std::chrono::steady_clock::now();
  fn();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Processor time of all threads: on one thread, what the clock would show if nobody else computed.
template <typename Fn>
double cpu_seconds_of(Fn&& fn) {
  const std::clock_t start = std::clock();
  fn();
  return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
}

}  // namespace tsp::bench
