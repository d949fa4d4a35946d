// SPDX-License-Identifier: MIT
// `tokensparse bench`: the operations timed on this machine, beside their peers and their floor.
#include <CLI/CLI.hpp>
#include <algorithm>

#include "cli/bench/options.h"
#include "cli/verbs.h"

namespace tsp::cli {
namespace {

constexpr const char* kFooter =
    "Every row is a median over --repeat calls with its spread; peers run in turn with it. "
    "GFLOP/s\n"
    "counts useful products only (nothing masked, padded or recomputed). `pairs` is what attend\n"
    "computes of dense attention's pairs of a query and a key. `floor` is the share of\n"
    "the time that this machine cannot beat: products at its measured peak, bytes at its measured\n"
    "copy rate. Peers: `llama.cpp`, its attention kernel in this process; `dense`, our own dense\n"
    "attend on the same queries; `torch`, scaled_dot_product_attention by the Python that\n"
    "TOKENSPARSE_PEER_PYTHON names. With --backend cuda: device time by events, floor from the\n"
    "card's tensor rate and its measured copy rate, beside `dense` alone.\n"
    "\n"
    "Examples:\n"
    "  tokensparse bench attend --tokens 4096,8192 --heads 14 --kv-heads 2 --dim 64 --json\n"
    "  tokensparse bench prefill --tokens 8192 --keep 0.25,0.5,0.75 --share kv_group\n"
    "  tokensparse bench attend --tokens 32768 --blocks 0.25 --precision bf16\n"
    "  tokensparse bench score --tokens 8192 --q-tokens 2048\n"
    "  tokensparse bench prefill --chunk 2048 --share kv_group --dropped local --keep 0.35 "
    "--parts\n"
    "  tokensparse bench prefill --backend cuda --tokens 32768 --heads 32 --kv-heads 8 --dim 128 "
    "--dtype bf16";

/// In the order of tsp_pattern_kind_t, from 1.
constexpr const char* kPatterns[] = {"xattention", "flexprefill", "minference", "pooled", "flash"};

void replace(CLI::App& app, const char* flag) { app.remove_option(app.get_option(flag)); }

template <typename Value>
CLI::Option* add_list(CLI::App& app, const char* flag, std::vector<Value>& values,
                      const std::string& description) {
  return app.add_option(flag, values, description)->delimiter(',')->type_name("LIST");
}

void add_shape_options(CLI::App& verb, BenchOptions& o) {
  constexpr int64_t kMaxTokens = int64_t{1} << 24;
  const CLI::Validator dtypes = one_of({"f32", "f16", "bf16"});
  add_list(verb, "--tokens", o.tokens, "Prompt lengths (keys)")
      ->check(between(1, kMaxTokens))
      ->default_str("8192");
  verb.add_option("--q-tokens,--chunk", o.q_tokens,
                  "Queries: the last so many of the tokens; 0 = all of them")
      ->check(between(0, kMaxTokens))
      ->default_str("0");
  verb.add_option("--heads", o.heads, "Query heads")->check(between(1, 4096))->default_str("14");
  verb.add_option("--kv-heads", o.kv_heads, "Key and value heads")
      ->check(between(1, 4096))
      ->default_str("2");
  add_list(verb, "--dim", o.dims, "Head dims")->check(between(1, 4096))->default_str("64");
  add_list(verb, "--dtype", o.dtypes, "Types of k and v: f32, f16, bf16")
      ->check(dtypes)
      ->type_name("f32|f16|bf16")
      ->default_str("f16");
  verb.add_option("--q-dtype", o.q_dtype,
                  "Type of q and out; f32 if not given, on a GPU the type of k and v")
      ->check(dtypes)
      ->type_name("f32|f16|bf16");
}

void add_measuring_options(CLI::App& verb, BenchOptions& o) {
  add_list(verb, "--peer", o.peers,
           "What to run beside it: llama.cpp, dense, torch, or none; those in this process if not "
           "given")
      ->check(one_of({"llama.cpp", "dense", "torch", "none"}))
      ->type_name("llama.cpp|dense|torch|none");
  verb.add_option("--micro-batch", o.micro_batch, "Queries that llama.cpp's kernel gets at a time")
      ->check(between(1, 1 << 20))
      ->default_str("512");
  verb.add_option("--repeat", o.budget.repeat, "Samples of each, at least")
      ->check(between(bench::kFewest, bench::kMost))
      ->default_str("7");
  verb.add_option("--min-time", o.budget.min_time, "Seconds of samples of each, at least")
      ->check(between(0, 3600))
      ->default_str("0.5");
  verb.add_option("--max-time", o.budget.max_time,
                  "Seconds of samples of each after which three samples are enough")
      ->check(between(0, 36000))
      ->default_str("60");
  verb.add_flag("--cpu-time", o.cpu_time,
                "Processor time of this process instead of the clock's, for a machine that others\n"
                "use; with --threads 1. Not of llama.cpp, torch and GPUs");
  verb.add_flag("--json", o.json, "Print one JSON object, and nothing else");
}

/// A method's other parameters are its authors'.
void add_pattern_options(CLI::App& verb, tsp_pattern_t& pattern) {
  verb.add_option_function<std::string>(
          "--pattern",
          [&pattern](const std::string& name) {
            const std::vector<std::string> names(std::begin(kPatterns), std::end(kPatterns));
            const auto at = std::find(names.begin(), names.end(), name) - names.begin();
            tsp_pattern_init(&pattern, static_cast<int32_t>(at) + TSP_PATTERN_XATTENTION);
          },
          "How blocks are chosen, with the parameters that its authors publish")
      ->check(CLI::IsMember(std::vector<std::string>(std::begin(kPatterns), std::end(kPatterns))))
      ->default_str(kPatterns[0]);
}

void add_bench_verb(CLI::App& parent, const std::string& op, const std::string& description) {
  CLI::App* verb = parent.add_subcommand(op, description);
  const auto options = std::make_shared<BenchOptions>();
  options->op = op;
  tsp_prefill_params_init(&options->params, sizeof options->params);
  add_shape_options(*verb, *options);
  add_operator_options(*verb, options->params);
  add_backend_options(*verb, options->backend, /*cuda=*/true);
  for (const char* flag : {"--keep", "--coverage", "--precision", "--isa", "--threads"})
    replace(*verb, flag);
  add_list(*verb, "--keep", options->keeps,
           "Kept shares of the tokens; attend is dense and select goes by --coverage without")
      ->check(between(0, 1))
      ->group("Choosing tokens");
  add_list(*verb, "--coverage", options->coverages,
           "Shares of the attention mass that may be dropped, where --keep does not decide")
      ->check(between(0, 0.9999999))
      ->default_str("0.005")
      ->group("Choosing tokens");
  add_list(*verb, "--precision", options->precisions, "Arithmetic of the products: f32, bf16")
      ->check(one_of({"f32", "bf16"}))
      ->type_name("f32|bf16")
      ->default_str("f32")
      ->group("Where it runs");
  add_list(*verb, "--isa", options->isas, "CPU instruction sets; the best one if not given")
      ->group("Where it runs");
  add_list(*verb, "--threads", options->threads, "CPU threads; 0 = all that this process may use")
      ->check(between(0, 1024))
      ->default_str("0")
      ->group("Where it runs");
  add_measuring_options(*verb, *options);
  if (op == "attend") {
    verb->add_option("--blocks", options->blocks,
                     "Share of the key blocks (128 keys, drawn at random) that queries read beside "
                     "those on the diagonal; 0 = all. On the CPU")
        ->check(between(0, 1))
        ->default_str("0")
        ->group("Choosing tokens");
  }
  tsp_pattern_init(&options->pattern, TSP_PATTERN_XATTENTION);
  if (op == "estimate") add_pattern_options(*verb, options->pattern);
  if (op == "prefill") {
    add_choice(*verb, "--when", options->params.when, {"always", "pays"},
               "pays: attend exactly where leaving tokens out is not expected to be faster")
        ->group("Choosing tokens");
    add_blocks_option(*verb, options->params.pattern);
    verb->add_flag("--parts", options->parts,
                   "Time its steps apart: score, select, pack (one row on all kept keys), the kept "
                   "rows, and attend with the rows that were left out");
  }
  verb->footer(kFooter);
  verb->callback([options] {
    BenchReport report(options->json);
    run_bench(*options, report);
  });
}

}  // namespace

void add_bench(CLI::App& app) {
  CLI::App* verb = app.add_subcommand("bench", "Time the operations beside their peers");
  verb->require_subcommand(1);
  add_bench_verb(*verb, "attend", "Causal attention, dense or on kept tokens (--keep)");
  add_bench_verb(*verb, "score", "How much the last queries look at each token");
  add_bench_verb(*verb, "select", "Which tokens are kept");
  add_bench_verb(*verb, "estimate", "Which key blocks each query block reads (--pattern)");
  add_bench_verb(*verb, "prefill", "Score, select and attend in one call");
}

}  // namespace tsp::cli
