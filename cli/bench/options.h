// SPDX-License-Identifier: MIT
// What `tokensparse bench` is asked to measure, how it measures one row, and how it shows them.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/floor.h"
#include "bench/shape.h"
#include "bench/timing.h"
#include "cli/options.h"

namespace tsp::cli {

/// Each list makes a row of every value with every value of the others.
struct BenchOptions {
  std::string op;  // attend, score, select, estimate, prefill
  std::vector<int64_t> tokens{8192};
  std::vector<int64_t> dims{64};
  std::vector<std::string> dtypes{"f16"};
  std::vector<std::string> precisions{"f32"};
  std::vector<std::string> isas;  // empty: the best one
  std::vector<int32_t> threads{0};
  std::vector<double> keeps;  // empty: dense (attend) or by coverage (select, prefill)
  std::vector<double> coverages;
  double blocks = 0;     // attend: share of the key blocks that are read; 0: all
  int64_t q_tokens = 0;  // 0: all
  int64_t heads = 14;
  int64_t kv_heads = 2;
  std::string q_dtype;          // empty: f32, on a GPU the type of k and v
  tsp_prefill_params_t params;  // how tokens are chosen, and in prefill blocks
  tsp_pattern_t pattern;        // how blocks are: estimate
  BackendOptions backend;
  std::vector<std::string> peers;  // empty: those in this process
  int64_t micro_batch = 512;       // of llama.cpp
  bool parts = false;              // of prefill: time its steps apart
  bench::Budget budget;
  bool cpu_time = false;  // the process's, not the clock's
  bool json = false;
};

struct BenchRow {
  std::string op, backend, isa, dtype, q_dtype, precision, share;
  bench::Shape shape;
  int threads = 0;
  double coverage = 0;
  double kept = 1;    // share of the tokens that a set keeps
  double pairs = 1;   // share of dense attention's pairs that attend computes
  double served = 1;  // share of the tokens that prefill keeps, which by --when pays may keep all
  bench::Spread time;
  bench::Work work;
  double floor_s = 0;
  struct Peer {
    std::string name;
    nlohmann::json result;  // median_s, spread, and what else there is to say
  };
  std::vector<Peer> peers;
  struct Part {
    std::string name;
    bench::Spread time;
  };
  std::vector<Part> parts;
};

/// Measures everything asked for. `report` gets the floors of each (isa, threads) before its rows,
/// each row when it is done, and one sentence for each peer that could not be had.
class BenchReport;
void run_bench(const BenchOptions& options, BenchReport& report);

/// Prints rows as they come, or one JSON object at the end.
class BenchReport {
 public:
  explicit BenchReport(bool json);
  /// `gpu`: the card that the rows are from, empty where they are from this machine's processor.
  void floor(const bench::Floor& floor, const std::string& gpu);
  void row(const BenchRow& row);
  void note(const std::string& sentence);
  void finish();

 private:
  bool json_;
  bool header_printed_ = false;
  nlohmann::json document_;
  std::vector<std::string> notes_;
};

nlohmann::json spread_json(const bench::Spread& spread);

}  // namespace tsp::cli
