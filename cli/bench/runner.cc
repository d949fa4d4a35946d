// SPDX-License-Identifier: MIT
// Measures the rows of `tokensparse bench`: the op through the C ABI, and its peers in turn.
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>

#include "bench/ggml_peer.h"
#include "bench/torch_peer.h"
#include "bench/workload.h"
#include "cli/bench/ops.h"
#include "cli/bench/options.h"
#include "cli/gpu.h"
#include "cli/verbs.h"

namespace tsp::cli {
namespace {

constexpr double kQuietTolerance = 0.08;
/// Steps of prefill, in the order of Runner::add_parts().
constexpr const char* kParts[] = {"score", "select", "pack", "kept_rows", "attend"};
constexpr const char* kShareNames[] = {"head", "kv_group", "layer"};

tsp_dtype_t dtype_of(const std::string& name) {
  return name == "f32" ? TSP_F32 : name == "f16" ? TSP_F16 : TSP_BF16;
}

double rms_difference(const float* a, const float* b, int64_t count) {
  double difference = 0, size = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double d = double{a[i]} - b[i];
    difference += d * d;
    size += double{b[i]} * b[i];
  }
  return std::sqrt(difference / size);
}

class Runner {
 public:
  Runner(const BenchOptions& options, BenchReport& report) : options_(options), report_(report) {}

  void run() {
    const std::vector<std::string> isas =
        options_.isas.empty() ? std::vector<std::string>{""} : options_.isas;
    for (const std::string& isa : isas) {
      for (const int32_t threads : options_.threads) {
        BackendOptions backend = options_.backend;
        backend.isa = isa;
        backend.threads = threads;
        ctx_ = open_context(backend);
        on_gpu_ = backend.backend == TSP_BACKEND_CUDA;
        floor_ = on_gpu_ ? gpu_floor(ctx_.isa())
                         : bench::measure_floor(ctx_.isa(), tsp_context_threads(ctx_.get()));
        report_.floor(floor_, on_gpu_ ? gpu_name() : "");
        run_shapes();
        if (!on_gpu_) check_quiet();
      }
    }
  }

 private:
  /// A peak that moved says that others used the machine meanwhile.
  void check_quiet() {
    const double now = bench::measure_f32_gflops(floor_.isa, floor_.threads);
    if (std::abs(now / floor_.f32_gflops - 1) <= kQuietTolerance) return;
    char sentence[160];
    std::snprintf(sentence, sizeof sentence,
                  "the machine was not quiet: its f32 peak with %d threads was %.0f GFLOP/s "
                  "before and %.0f after",
                  floor_.threads, floor_.f32_gflops, now);
    report_.note(sentence);
  }

  std::string q_dtype(const std::string& kv_dtype) const {
    if (!options_.q_dtype.empty()) return options_.q_dtype;
    return on_gpu_ ? kv_dtype : "f32";
  }

  void run_shapes() {
    for (const int64_t dim : options_.dims) {
      for (const std::string& dtype : options_.dtypes) {
        for (const int64_t tokens : options_.tokens) {
          const int64_t queries = options_.q_tokens == 0 ? tokens : options_.q_tokens;
          bench::Workload work({tokens, queries, options_.heads, options_.kv_heads, dim,
                                dtype_of(dtype), dtype_of(q_dtype(dtype))});
          for (const std::string& precision : options_.precisions) run_choices(work, precision);
        }
      }
    }
  }

  void run_choices(bench::Workload& work, const std::string& precision) {
    const std::vector<double> keeps =
        options_.keeps.empty() || options_.op == "score" || options_.op == "estimate"
            ? std::vector<double>{0}
            : options_.keeps;
    const bool decided = keeps.front() > 0;  // then no coverage is looked at
    const std::vector<double> coverages = decided || options_.coverages.empty()
                                              ? std::vector<double>{options_.params.coverage}
                                              : options_.coverages;
    for (const double keep : keeps) {
      for (const double coverage : coverages) {
        tsp_prefill_params_t choice = options_.params;
        choice.keep = static_cast<float>(keep);
        choice.coverage = static_cast<float>(coverage);
        choice.precision = precision == "bf16" ? TSP_PRECISION_BF16 : TSP_PRECISION_F32;
        report_.row(measure(work, choice));
      }
    }
  }

  BenchRow measure(bench::Workload& work, const tsp_prefill_params_t& choice) {
    const bench::Shape& s = work.shape;
    Ops ops(ctx_, work, choice, options_.pattern);
    const bool chooses = options_.op == "select" || options_.op == "prefill" ||
                         (options_.op == "attend" && choice.keep > 0);
    if (chooses) ops.choose();
    if (options_.blocks > 0) ops.draw_blocks(options_.blocks, chooses);
    BenchRow row = describe(s, choice);
    if (options_.op == "estimate") row.pairs = ops.name_blocks();
    if (chooses) row.kept = static_cast<double>(ops.sets().kept) / static_cast<double>(s.tokens);
    row.served = row.kept;
    if (options_.op == "prefill") {
      row.served = static_cast<double>(ops.prefill_kept()) / static_cast<double>(s.tokens);
    }
    row.coverage = choice.keep > 0 ? 0 : static_cast<double>(choice.coverage);
    count_work(row, ops, choice, chooses);
    if (choice.pattern.kind != TSP_PATTERN_NONE) count_blocks(row, ops, choice);

    std::vector<bench::Contestant> contestants{[&] { return time_op(ops, chooses); }};
    const bool has_dense =
        wants("dense") && (options_.op != "attend" || chooses || options_.blocks > 0);
    if (has_dense) contestants.push_back([&] { return time_of([&] { ops.dense(); }); });
    const auto ggml = llama_cpp_peer(work);
    if (ggml) contestants.push_back([&] { return ggml->run(); });
    if (options_.parts) add_parts(contestants, ops);
    const std::vector<bench::Spread> spreads = bench::measure_in_turn(contestants, options_.budget);

    row.time = spreads[0];
    const bench::Work dense = bench::attend_work(s, nullptr, 0, 0);
    if (has_dense) row.peers.push_back({"dense", peer_json(spreads[1], dense)});
    for (size_t i = 0; options_.parts && i < std::size(kParts); ++i) {
      row.parts.push_back({kParts[i], spreads[spreads.size() - std::size(kParts) + i]});
    }
    if (ggml) {
      row.peers.push_back({"llama.cpp", peer_json(spreads[has_dense ? 2 : 1], dense)});
      row.peers.back().result["rms_difference"] = difference(ops, *ggml, work, choice);
    }
    if (wants("torch") && !on_gpu_) add_torch(row, dense);
    return row;
  }

  BenchRow describe(const bench::Shape& s, const tsp_prefill_params_t& choice) const {
    BenchRow row;
    row.op = options_.op;
    row.backend = tsp_context_backend(ctx_.get());
    row.isa = tsp_context_isa(ctx_.get());
    row.dtype = s.kv_dtype == TSP_F32 ? "f32" : s.kv_dtype == TSP_F16 ? "f16" : "bf16";
    row.q_dtype = q_dtype(row.dtype);
    row.precision = choice.precision == TSP_PRECISION_BF16 ? "bf16" : "f32";
    row.share = kShareNames[choice.share];
    row.shape = s;
    row.threads = tsp_context_threads(ctx_.get());
    return row;
  }

  void count_work(BenchRow& row, const Ops& ops, const tsp_prefill_params_t& choice,
                  bool chooses) const {
    const auto precision = static_cast<tsp_precision_t>(choice.precision);
    const auto add = [&](const bench::Work& work, tsp_precision_t arithmetic) {
      row.work = row.work + work;
      row.floor_s += floor_.seconds(work, arithmetic);
    };
    const bool local = choice.dropped == TSP_DROPPED_LOCAL;
    if (row.op == "score" || row.op == "prefill") {
      add(bench::score_work(row.shape, choice.window), precision);
    }
    if (row.op == "select" || row.op == "prefill") {
      add(bench::select_work(row.shape, choice.window, ops.sets().num_sets, ops.sets().kept),
          TSP_PRECISION_F32);
    }
    if (row.op == "estimate") add(bench::estimate_work(row.shape, options_.pattern), precision);
    if (row.op == "attend" || row.op == "prefill") {
      const bench::Work work =
          bench::attend_work(row.shape, chooses ? &ops.sets() : nullptr, local ? choice.sink : 0,
                             local ? choice.band : 0, ops.blocks());
      add(work, precision);
      row.pairs = work.flops / bench::attend_work(row.shape, nullptr, 0, 0).flops;
    }
  }

  /// What the blocks leave of attend's work; estimating them is not in the floor.
  void count_blocks(BenchRow& row, Ops& ops, const tsp_prefill_params_t& choice) const {
    const bench::Work dense = bench::attend_work(row.shape, nullptr, 0, 0);
    const double pairs = ops.count_pairs() * 4 * static_cast<double>(row.shape.dim) / dense.flops;
    const bench::Work gone = {.flops = (pairs - row.pairs) * dense.flops, .bytes = 0};
    row.work = row.work + gone;
    row.floor_s += floor_.seconds(gone, static_cast<tsp_precision_t>(choice.precision));
    row.pairs = pairs;
  }

  void add_parts(std::vector<bench::Contestant>& contestants, Ops& ops) const {
    for (void (Ops::*part)() :
         {&Ops::score, &Ops::select, &Ops::last_row, &Ops::kept_rows, &Ops::sparse}) {
      contestants.push_back([this, &ops, part] { return time_of([&] { (ops.*part)(); }); });
    }
  }

  double time_of(const std::function<void()>& call) const {
    if (on_gpu_) return gpu_seconds(call);
    return options_.cpu_time ? bench::cpu_seconds_of(call) : bench::seconds_of(call);
  }

  double time_op(Ops& ops, bool chooses) const {
    return time_of([&] {
      if (options_.op == "score") {
        ops.score();
      } else if (options_.op == "select") {
        ops.select();
      } else if (options_.op == "estimate") {
        ops.estimate();
      } else if (options_.op == "prefill") {
        ops.prefill();
      } else if (ops.blocks() != nullptr) {
        ops.by_blocks();
      } else {
        chooses ? ops.sparse() : ops.dense();
      }
    });
  }

  bool wants(const std::string& peer) const {
    if (options_.peers.empty()) return peer != "torch";
    return std::find(options_.peers.begin(), options_.peers.end(), peer) != options_.peers.end();
  }

  std::unique_ptr<bench::GgmlPeer> llama_cpp_peer(const bench::Workload& work) {
    if (on_gpu_ || !wants("llama.cpp") || options_.op == "score" || options_.op == "select" ||
        options_.op == "estimate") {
      return nullptr;
    }
    auto peer = bench::GgmlPeer::create(work, floor_.threads, options_.micro_batch);
    if (!peer && !options_.peers.empty()) {
      report_.note(llama_description() == nullptr
                       ? "no llama.cpp beside it: this build was made without it"
                       : "no llama.cpp beside it: its kernel takes f32 queries (--q-dtype)");
    }
    return peer;
  }

  /// Ours and llama.cpp's answers to the same question; a fast wrong kernel must not win.
  double difference(Ops& ops, const bench::GgmlPeer& ggml, const bench::Workload& work,
                    const tsp_prefill_params_t& choice) const {
    ops.dense();
    const int64_t count = work.shape.q_tokens * work.shape.heads * work.shape.dim;
    const double rms = rms_difference(static_cast<const float*>(work.out.data), ggml.out(), count);
    const double most = choice.precision == TSP_PRECISION_BF16 ? 2e-2 : 2e-3;
    if (!(rms <= most)) {
      throw Failure("attend and llama.cpp's kernel must agree to " + std::to_string(most) +
                    " relative RMS, got " + std::to_string(rms));
    }
    return rms;
  }

  static nlohmann::json peer_json(const bench::Spread& time, const bench::Work& work) {
    return {{"median_s", time.median},
            {"spread", spread_json(time)},
            {"gflops", work.flops / time.median / 1e9}};
  }

  void add_torch(BenchRow& row, const bench::Work& dense) {
    std::string why;
    const std::string text = bench::run_torch_peer(row.shape, row.precision == "bf16", row.threads,
                                                   options_.budget, &why);
    nlohmann::json result = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!result.is_object() || !result.contains("median_s")) {
      report_.note(why.empty() ? "no torch beside it: its script printed no result" : why);
      return;
    }
    result["gflops"] = dense.flops / result["median_s"].get<double>() / 1e9;
    row.peers.push_back({"torch", std::move(result)});
  }

  const BenchOptions& options_;
  BenchReport& report_;
  tokensparse::Context ctx_;
  bool on_gpu_ = false;
  bench::Floor floor_;
};

/// q, k, v, out, scores and lists, with twice that for workspace and llama.cpp's mask.
double needed_bytes(const BenchOptions& o, int64_t tokens, int64_t dim) {
  const int64_t queries = o.q_tokens == 0 ? tokens : o.q_tokens;
  const double rows =
      8.0 * static_cast<double>(dim) * static_cast<double>(queries * o.heads + tokens * o.kv_heads);
  return 3 * (rows + 8.0 * static_cast<double>(tokens * o.heads)) +
         2.0 * static_cast<double>(tokens * o.micro_batch);
}

void check_options(const BenchOptions& o) {
  if (o.backend.backend == TSP_BACKEND_CUDA) {
    for (const std::string& peer : o.peers) {
      if (peer != "dense" && peer != "none") {
        throw Failure("--peer: beside --backend cuda runs dense or none, got " + peer, kExitUsage);
      }
    }
  }
  if (o.blocks > 0 && o.backend.backend == TSP_BACKEND_CUDA) {
    throw Failure("--blocks: runs on the CPU, got --backend cuda", kExitUsage);
  }
  if (o.parts && o.backend.backend == TSP_BACKEND_CUDA) {
    throw Failure("--parts: times the steps of the CPU's prefill, got --backend cuda", kExitUsage);
  }
  if (o.heads % o.kv_heads != 0) {
    throw Failure("--heads: must be a multiple of --kv-heads (" + std::to_string(o.kv_heads) +
                      "), got " + std::to_string(o.heads),
                  kExitUsage);
  }
  const double memory =
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  for (const int64_t tokens : o.tokens) {
    if (o.q_tokens > tokens) {
      throw Failure("--q-tokens: must be at most --tokens (" + std::to_string(tokens) + "), got " +
                        std::to_string(o.q_tokens),
                    kExitUsage);
    }
    for (const int64_t dim : o.dims) {
      if (needed_bytes(o, tokens, dim) > 0.9 * memory) {
        throw Failure("--tokens: " + std::to_string(tokens) + " needs about " +
                      std::to_string(static_cast<int64_t>(needed_bytes(o, tokens, dim) / 1e9)) +
                      " GB of memory, and this machine has " +
                      std::to_string(static_cast<int64_t>(memory / 1e9)));
      }
    }
  }
}

}  // namespace

void run_bench(const BenchOptions& options, BenchReport& report) {
  check_options(options);
  Runner(options, report).run();
  report.finish();
}

}  // namespace tsp::cli
