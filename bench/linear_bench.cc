// SPDX-License-Identifier: MIT
// linear_bench: products of a prompt's rows by a weight, in 8-bit integers, in bf16, through oneDNN
// and by ggml, timed in turn beside what the processor can do at most.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "adapters/ggml/linear_node.h"
#include "adapters/ggml/panels/panel_engine.h"
#include "bench/floor.h"
#include "bench/timing.h"
#include "cli/llama/openmp_threads.h"
#include "ggml-cpu.h"
#include "ggml.h"

namespace {

using tsp::ggml_adapter::LinearKind;
using tsp::ggml_adapter::LinearOptions;
using tsp::ggml_adapter::LinearRefusal;
using tsp::ggml_adapter::LinearServer;
using tsp::ggml_adapter::PanelEngine;
namespace panels = tsp::ggml_adapter::panels;

struct Options {
  std::vector<std::string> shapes = {"896x4864",  "4864x896",  "896x896",
                                     "1536x8960", "8960x1536", "1536x1536"};
  std::string type = "q8_0";
  int64_t rows = 2048;
  int32_t threads = 2;
  int32_t keep_mb = 0;
  bool json = false;
  tsp::bench::Budget budget{.repeat = 5, .min_time = 0.2, .max_time = 5};
};

/// One node: a random weight of the type, random rows.
class Product {
 public:
  Product(int64_t k, int64_t n, int64_t m, ggml_type type) {
    const size_t bytes = 4 * static_cast<size_t>(2 * k * n + k * m + n * m);
    ctx_.reset(ggml_init({bytes + (1u << 20), nullptr, /*no_alloc=*/false}));
    ggml_tensor* weight = ggml_new_tensor_2d(ctx_.get(), type, k, n);
    ggml_tensor* input = ggml_new_tensor_2d(ctx_.get(), GGML_TYPE_F32, k, m);
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(k * n));
    for (float& value : values) value = 0.05f * normal(random);
    ggml_quantize_chunk(type, values.data(), weight->data, 0, n, k, nullptr);
    auto* rows = static_cast<float*>(input->data);
    for (int64_t i = 0; i < k * m; ++i) rows[i] = normal(random);
    node_ = ggml_mul_mat(ctx_.get(), weight, input);
    graph_ = ggml_new_graph_custom(ctx_.get(), 4, false);
    ggml_build_forward_expand(graph_, node_);
  }

  ggml_tensor& node() { return *node_; }
  double ggml_seconds(int threads) {
    ggml_cplan plan = ggml_graph_plan(graph_, threads, nullptr);
    scratch_.resize(plan.work_size);
    plan.work_data = scratch_.data();
    return tsp::bench::seconds_of([&] { ggml_graph_compute(graph_, &plan); });
  }

 private:
  struct Free {
    void operator()(ggml_context* ctx) const { ggml_free(ctx); }
  };
  std::unique_ptr<ggml_context, Free> ctx_;
  ggml_tensor* node_;
  ggml_cgraph* graph_;
  std::vector<uint8_t> scratch_;
};

LinearOptions options_of(LinearKind kind, const Options& options) {
  LinearOptions linear;
  linear.kind = kind;
  linear.threads = options.threads;
  linear.parallel = tsp::cli::run_on_openmp;
  linear.keep_bytes = static_cast<size_t>(options.keep_mb) * 1'000'000;
  linear.type_traits = ggml_get_type_traits;
  return linear;
}

std::unique_ptr<LinearServer> open(LinearKind kind, const Options& options) {
  std::string why;
  auto server = LinearServer::create(options_of(kind, options), why);
  if (server == nullptr) std::fprintf(stderr, "left out: %s\n", why.c_str());
  return server;
}

ggml_type type_named(const std::string& name) {
  for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
    const auto type = static_cast<ggml_type>(i);
    if (ggml_is_quantized(type) && name == ggml_type_name(type)) return type;
  }
  throw CLI::ValidationError("--type", "must be a quantised type of ggml, as q4_K, got " + name);
}

struct Entry {
  std::string name;
  tsp::bench::Spread time;
  double weight_share;  // of the time
};

std::vector<Entry> measure(Product& product, const std::vector<LinearServer*>& servers,
                           const Options& options) {
  std::vector<tsp::bench::Contestant> contestants;
  for (LinearServer* server : servers) {
    contestants.push_back([&product, server] {
      return tsp::bench::seconds_of([&] {
        if (server->check(product.node()) != LinearRefusal::kNone ||
            !server->serve(product.node())) {
          throw CLI::RuntimeError(server->description() + " does not take this product", 1);
        }
      });
    });
    server->reset_stats();
  }
  contestants.push_back([&] { return product.ggml_seconds(options.threads); });
  const auto spreads = tsp::bench::measure_in_turn(contestants, options.budget);
  std::vector<Entry> entries;
  for (size_t i = 0; i < servers.size(); ++i) {
    const auto& stats = servers[i]->stats();
    entries.push_back({servers[i]->description(), spreads[i], stats.weight_s / stats.seconds});
  }
  entries.push_back({"ggml", spreads.back(), 0});
  return entries;
}

void run(const Options& options) {
  const ggml_type type = type_named(options.type);
  const double peak = tsp::bench::measure_int8_gops(options.threads);
  const std::string isa = tsp::cli::open_on_openmp("", options.threads).isa();
  const auto floor = tsp::bench::measure_floor(isa, options.threads);
  std::printf("%s weights, %lld rows, %d threads; peak %.0f GOP/s in int8, %.0f in bf16\n",
              options.type.c_str(), static_cast<long long>(options.rows), options.threads, peak,
              floor.bf16_gflops);
  std::vector<std::unique_ptr<LinearServer>> opened;
  const tsp::ggml_adapter::Threads threads = {options.threads, tsp::cli::run_on_openmp, nullptr};
  const auto add = [&](LinearKind kind, const std::vector<const panels::Kernels*>& tables) {
    for (const panels::Kernels* kernels : tables) {
      opened.push_back(LinearServer::create(std::make_unique<PanelEngine>(*kernels, threads),
                                            options_of(kind, options)));
    }
  };
  add(LinearKind::kInt8, panels::int8_kernels());
  add(LinearKind::kBf16, panels::bf16_kernels());
  opened.push_back(open(LinearKind::kOneDnn, options));
  std::vector<LinearServer*> servers;
  for (const auto& server : opened) {
    if (server != nullptr) servers.push_back(server.get());
  }
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const std::string& shape : options.shapes) {
    long long k = 0, n = 0;
    char end;
    if (std::sscanf(shape.c_str(), "%lldx%lld%c", &k, &n, &end) != 2 || k <= 0 || n <= 0 ||
        k % ggml_blck_size(type) != 0) {
      throw CLI::ValidationError("--shapes",
                                 "must be KxN, K in whole blocks of the type, got " + shape);
    }
    Product product(k, n, options.rows, type);
    const double gop = 2e-9 * static_cast<double>(k * n * options.rows);
    std::printf("%s:", shape.c_str());
    for (const Entry& entry : measure(product, servers, options)) {
      std::printf("  %s %.0f GOP/s (%.2f ms, weights %.0f %%)", entry.name.c_str(),
                  gop / entry.time.median, entry.time.median * 1e3, entry.weight_share * 100);
      rows.push_back({{"shape", shape},
                      {"by", entry.name},
                      {"median_s", entry.time.median},
                      {"p25_s", entry.time.p25},
                      {"p75_s", entry.time.p75},
                      {"samples", entry.time.samples},
                      {"gops", gop / entry.time.median},
                      {"weight_share", entry.weight_share}});
    }
    std::printf("\n");
    std::fflush(stdout);
  }
  if (!options.json) return;
  const nlohmann::ordered_json report = {{"type", options.type},
                                         {"rows", options.rows},
                                         {"threads", options.threads},
                                         {"int8_peak_gops", peak},
                                         {"bf16_peak_gflops", floor.bf16_gflops},
                                         {"products", rows}};
  std::printf("%s\n", report.dump(2).c_str());
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Times products of a prompt's rows by a weight: in 8-bit integers, bf16, oneDNN, ggml.");
  app.add_option("--shapes", options.shapes, "KxN: K inputs, N outputs")->delimiter(',');
  app.add_option("--type", options.type, "Of the weight, as ggml names it")->capture_default_str();
  app.add_option("--rows", options.rows)->check(CLI::Range(64, 1 << 16))->capture_default_str();
  app.add_option("--threads", options.threads)->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--keep", options.keep_mb, "Megabytes for weights that stay in an engine's form")
      ->check(CLI::Range(0, 1 << 20));
  app.add_flag("--json", options.json, "The figures once more, as JSON");
  try {
    app.parse(argc, argv);
    run(options);
  } catch (const CLI::Error& error) {
    return app.exit(error);
  }
  return 0;
}
