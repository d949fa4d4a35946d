// SPDX-License-Identifier: MIT
#include "bench/timing.h"

#include <algorithm>
#include <cmath>
#include <thread>

namespace tsp::bench {
namespace {

double quantile(const std::vector<double>& sorted, double q) {
  const double at = q * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(at);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (at - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

/// Shorter work is repeated until a sample takes this long: what counts is work, not waking up.
constexpr double kShortestSample = 2e-3;

/// Threads that slept may share a core until the scheduler moves one, some milliseconds later:
/// short work is preceded by calls that do not count.
constexpr double kShortWork = 50e-3;
constexpr double kWarmUp = 10e-3;

/// Threads of a peer spin for a while after their work (OpenMP does): they must not take the cores
/// of the next one. 20 ms covers libgomp's default of 300,000 rounds.
void let_threads_settle() { std::this_thread::sleep_for(std::chrono::milliseconds(20)); }

}  // namespace

Spread spread_of(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  return {quantile(samples, 0.5),  samples.front(), quantile(samples, 0.25),
          quantile(samples, 0.75), samples.back(),  static_cast<int>(samples.size())};
}

std::vector<Spread> measure_in_turn(const std::vector<Contestant>& contestants,
                                    const Budget& budget) {
  std::vector<std::vector<double>> samples(contestants.size());
  std::vector<double> total(contestants.size(), 0.0);
  std::vector<int> calls;
  std::vector<bool> is_short;
  for (const Contestant& contestant : contestants) {
    double warm_up = contestant();
    if (warm_up < kShortestSample) warm_up = contestant();
    const double wanted = std::ceil(kShortestSample / std::max(warm_up, 1e-7));
    is_short.push_back(warm_up < kShortWork);
    calls.push_back(static_cast<int>(std::clamp(wanted, 1.0, 1000.0)));
  }
  const auto wants_more = [&](size_t i) {
    const auto count = static_cast<int>(samples[i].size());
    if (count < kFewest) return true;
    if (count >= kMost || total[i] >= budget.max_time) return false;
    return count < budget.repeat || total[i] < budget.min_time;
  };
  for (bool more = true; more;) {
    more = false;
    for (size_t i = 0; i < contestants.size(); ++i) {
      if (!wants_more(i)) continue;
      more = true;
      if (contestants.size() > 1) let_threads_settle();
      if (contestants.size() > 1 && is_short[i]) {
        for (double warm = 0; warm < kWarmUp;) warm += contestants[i]();
      }
      double seconds = 0;
      for (int call = 0; call < calls[i]; ++call) seconds += contestants[i]();
      samples[i].push_back(seconds / calls[i]);
      total[i] += seconds;
    }
  }
  std::vector<Spread> spreads;
  for (auto& list : samples) spreads.push_back(spread_of(std::move(list)));
  return spreads;
}

}  // namespace tsp::bench
