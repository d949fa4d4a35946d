// SPDX-License-Identifier: MIT
// `tokensparse run`: a question about a long text, answered by a GGUF model through llama.cpp, with
// attention of ours while it reads the prompt.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>

#include "cli/interrupt.h"
#include "cli/layer_profile.h"
#include "cli/linear.h"
#include "cli/llama_session.h"
#include "cli/openmp_threads.h"
#include "cli/options.h"
#include "cli/peak_memory.h"
#include "cli/run_report.h"
#include "cli/verbs.h"

namespace tsp::cli {
namespace {

constexpr int32_t kStockUbatch = 512;  // llama.cpp's default, and where it is fastest

struct RunOptions {
  std::string model, text, question;
  std::string sparse_layers = "auto";
  std::string isa;
  std::string precision = "auto";
  std::string chat_template = "model";
  tsp_prefill_params_t op;
  int32_t answer_tokens = 64;
  int32_t context = 0;
  int32_t ubatch = 2048;
  int32_t min_keys = ggml_adapter::kMinSparseKeys;
  int32_t threads = 0;
  LinearChoice linear;
  bool compare = false, json = false, verbose = false;

  bool wants_sparse() const { return sparse_layers != "none" && (op.coverage > 0 || op.keep > 0); }
};

/// "7-15,18" -> 7, 8, ..., 15, 18.
std::vector<int32_t> parse_layers(const std::string& list, int32_t num_layers) {
  const auto wrong = [&] {
    return Failure("--sparse-layers: must be auto, none, or layers like 7-15,18 below " +
                       std::to_string(num_layers) + ", got " + list,
                   kExitUsage);
  };
  std::vector<int32_t> layers;
  size_t at = 0;
  const auto number = [&] {
    int32_t value = 0;
    const size_t start = at;
    while (at < list.size() && list[at] >= '0' && list[at] <= '9' && value < num_layers) {
      value = 10 * value + (list[at++] - '0');
    }
    if (at == start || value >= num_layers) throw wrong();
    return value;
  };
  while (true) {
    const int32_t first = number();
    int32_t last = first;
    if (at < list.size() && list[at] == '-') {
      ++at;
      last = number();
    }
    if (last < first) throw wrong();
    for (int32_t layer = first; layer <= last; ++layer) layers.push_back(layer);
    if (at == list.size()) break;
    if (list[at++] != ',') throw wrong();
  }
  std::sort(layers.begin(), layers.end());
  layers.erase(std::unique(layers.begin(), layers.end()), layers.end());
  return layers;
}

/// The profile beside the model; made and stored first where there is none.
std::vector<int32_t> profiled_layers(const RunOptions& options, const Model& model,
                                     const std::string& text, int32_t threads) {
  const std::string path = profile_path(options.model);
  LayerProfile profile;
  if (read_profile(path, model, profile)) return profile.sparse_layers;
  const std::string standard = default_profile_text();
  profile = measure_profile(model, standard.empty() ? text : standard, threads, !options.json);
  try {
    write_profile(profile, model, path);
    if (!options.json) std::fprintf(stderr, "layer profile stored in %s\n", path.c_str());
  } catch (const Failure& failure) {
    if (!options.json) std::fprintf(stderr, "layer profile not stored: %s\n", failure.what());
  }
  return profile.sparse_layers;
}

/// Why no layer of this prompt is worth choosing tokens in; empty where one may be.
std::string why_exact(const RunOptions& options, size_t prompt_tokens) {
  if (!options.wants_sparse() || options.sparse_layers != "auto") return "";
  const auto tokens = static_cast<int64_t>(prompt_tokens);
  if (tokens < options.min_keys) {
    return "fewer than " + std::to_string(options.min_keys) + " tokens (--min-keys)";
  }
  if (tokens <= int64_t{options.op.min_tokens} + options.op.window) {
    return "no more tokens than --min-tokens and --window keep";
  }
  return "";
}

std::vector<int32_t> sparse_layers(const RunOptions& options, const Model& model,
                                   const std::string& text, size_t prompt_tokens, int32_t threads) {
  if (!options.wants_sparse()) return {};
  if (options.sparse_layers != "auto") {
    return parse_layers(options.sparse_layers, model.num_layers());
  }
  if (!why_exact(options, prompt_tokens).empty()) return {};
  return profiled_layers(options, model, text, threads);
}

int32_t context_tokens(const RunOptions& options, const Model& model, size_t prompt_tokens) {
  const int64_t needed = static_cast<int64_t>(prompt_tokens) + options.answer_tokens;
  const int32_t limit = options.context > 0 ? options.context : model.trained_context();
  if (needed > limit) {
    throw Failure("the prompt has " + std::to_string(prompt_tokens) + " tokens, with " +
                  std::to_string(options.answer_tokens) +
                  " to answer in more than the context of " + std::to_string(limit) +
                  (options.context > 0 ? " (--ctx)" : ", which the model was trained for (--ctx)"));
  }
  return options.context > 0 ? options.context : static_cast<int32_t>(needed);
}

/// `--precision auto` rounds for attention where the linear layers do so already.
void choose_precision(RunOptions& options, const Model& model, const tokensparse::Context& ctx) {
  const ggml_adapter::LinearServer* linear = options.linear.server.get();
  const bool possible = ggml_adapter::has_bf16(ctx.get());
  if (options.precision == "bf16" && !possible) throw Failure(tsp_last_error());
  const bool rounded =
      linear != nullptr && linear->rounds() && model.weight_type() != LLAMA_FTYPE_ALL_F32;
  const bool bf16 = options.precision == "auto" ? rounded && possible : options.precision == "bf16";
  options.op.precision = bf16 ? TSP_PRECISION_BF16 : TSP_PRECISION_F32;
}

/// One sentence where nothing was served of a prompt long enough.
void check_served(const ggml_adapter::AttentionServer& server, const Model& model) {
  using ggml_adapter::Refusal;
  std::string reasons;
  std::vector<ggml_adapter::LayerStats> layers = server.layers();
  layers.push_back(server.no_layer());
  for (const ggml_adapter::LayerStats& layer : layers) {
    if (layer.served > 0) return;
  }
  for (size_t reason = 0; reason < static_cast<size_t>(Refusal::kCount); ++reason) {
    if (static_cast<Refusal>(reason) == Refusal::kShortChunk) continue;
    const bool any = std::any_of(layers.begin(), layers.end(),
                                 [&](const auto& layer) { return layer.refused[reason] > 0; });
    if (!any) continue;
    reasons += (reasons.empty() ? ": " : ", ");
    reasons += ggml_adapter::refusal_text(static_cast<Refusal>(reason));
  }
  throw Failure(model.path() + " has no attention layer that tokensparse can serve" +
                (reasons.empty() ? ": llama.cpp runs it without flash attention" : reasons));
}

class Runner {
 public:
  Runner(const RunOptions& options, const Model& model, std::vector<llama_token> prompt,
         int32_t threads)
      : options_(options),
        model_(model),
        prompt_(std::move(prompt)),
        threads_(threads),
        context_(context_tokens(options, model, prompt_.size())) {}

  /// Throws Failure where the model has no layer for us: after the first tokens of the prompt, not
  /// after minutes. It also brings the weights into memory, for each variant alike.
  void probe() const {
    if (prompt_.size() < kMinServedRows) return;
    const std::vector<llama_token> start(prompt_.begin(), prompt_.begin() + kMinServedRows);
    const tokensparse::Context ctx = open_on_openmp(options_.isa, threads_);
    ggml_adapter::Options exact;
    exact.op = options_.op;
    ggml_adapter::AttentionServer server(ctx.get(), exact);
    Session session(model_, {kMinServedRows, kMinServedRows, threads_}, &server);
    Progress silent("", kMinServedRows, false);
    session.read_prompt(start, silent);
    check_served(server, model_);
  }

  VariantResult stock() const {
    return run("stock", {context_, std::min(kStockUbatch, context_), threads_}, nullptr);
  }

  VariantResult ours(const std::string& name, const std::vector<int32_t>& sparse) const {
    ggml_adapter::Options adapter;
    adapter.op = options_.op;
    adapter.min_keys = options_.min_keys;
    adapter.sparse_layers.resize(static_cast<size_t>(model_.num_layers()));
    for (const int32_t layer : sparse) adapter.sparse_layers[static_cast<size_t>(layer)] = true;
    const tokensparse::Context ctx = open_on_openmp(options_.isa, threads_);
    ggml_adapter::AttentionServer server(ctx.get(), adapter);
    ggml_adapter::LinearServer* linear = options_.linear.server.get();
    if (linear != nullptr) linear->reset_stats();
    VariantResult result =
        run(name, {context_, std::min(options_.ubatch, context_), threads_, linear}, &server);
    result.layers = server.layers();
    if (linear != nullptr) {
      result.linear = linear->stats();
      result.linear_bytes = static_cast<int64_t>(linear->buffer_bytes() + linear->kept_bytes());
    }
    int64_t kept = 0, keys = 0;
    for (const int32_t layer : sparse) {
      if (static_cast<size_t>(layer) >= result.layers.size()) continue;
      kept += result.layers[static_cast<size_t>(layer)].kept;
      keys += result.layers[static_cast<size_t>(layer)].keys;
    }
    if (keys > 0) result.kept = static_cast<double>(kept) / static_cast<double>(keys);
    return result;
  }

 private:
  VariantResult run(const std::string& name, const SessionOptions& session_options,
                    ggml_adapter::AttentionServer* server) const {
    reset_peak_memory();
    Session session(model_, session_options, server);
    Progress progress(name + ": reading the prompt", static_cast<int64_t>(prompt_.size()),
                      !options_.json);
    const llama_token first = session.read_prompt(prompt_, progress);
    VariantResult result;
    result.name = name;
    result.ttft_s = session.read_seconds();
    result.attention_s = session.attention_seconds();
    result.answer = trimmed(session.answer(first, options_.answer_tokens));
    result.decode_tps = session.decode_per_second();
    result.peak_bytes = peak_memory();
    return result;
  }

  static std::string trimmed(const std::string& text) {
    const size_t first = text.find_first_not_of(" \n\t\r");
    if (first == std::string::npos) return "";
    return text.substr(first, text.find_last_not_of(" \n\t\r") - first + 1);
  }

  static constexpr int32_t kMinServedRows = 64;  // of ggml_adapter::Options

  const RunOptions& options_;
  const Model& model_;
  std::vector<llama_token> prompt_;
  int32_t threads_;
  int32_t context_;
};

void run(RunOptions& options) {
  const CatchInterrupt catch_interrupt;
  std::string note;
  const std::string text = read_text(options.text, &note);
  if (!note.empty() && !options.json) std::fprintf(stderr, "tokensparse: note: %s\n", note.c_str());
  const tokensparse::Context probe = open_context({TSP_BACKEND_CPU, options.isa, options.threads});
  const int32_t threads = probe.threads();
  open_linear(options.linear, threads);
  const bool repack = options.linear.server == nullptr;
  auto model = std::make_unique<const Model>(options.model, options.verbose, repack);
  fit_linear_to_weights(options.linear, model->weight_type());
  choose_precision(options, *model, probe);

  RunReport report;
  report.linear = options.linear.description;
  report.precision = options.op.precision == TSP_PRECISION_BF16 ? "bf16" : "f32";
  report.model = std::filesystem::path(options.model).filename().string();
  report.threads = threads;
  model->check_length(text, options.text,
                      options.context > 0 ? options.context : model->trained_context());
  const std::vector<llama_token> prompt =
      model->prompt_tokens(text, options.question, options.chat_template, &report.chat_template);
  report.prompt_tokens = static_cast<int64_t>(prompt.size());
  Runner(options, *model, prompt, threads).probe();
  report.why_exact = why_exact(options, prompt.size());
  report.sparse_layers = sparse_layers(options, *model, text, prompt.size(), threads);

  if (options.compare) {
    // Stock has its weights as llama.cpp likes them, and no second copy in its peak memory.
    if (!repack) {
      model.reset();
      model = std::make_unique<const Model>(options.model, options.verbose);
    }
    report.variants.push_back(Runner(options, *model, prompt, threads).stock());
    if (!repack) {
      model.reset();
      model = std::make_unique<const Model>(options.model, options.verbose, repack);
    }
  }
  const Runner runner(options, *model, prompt, threads);
  if (options.compare || !options.wants_sparse()) {
    report.variants.push_back(runner.ours("exact", {}));
  }
  if (options.wants_sparse()) {
    report.variants.push_back(runner.ours("sparse", report.sparse_layers));
  }
  if (options.json) {
    std::fputs(to_json(report, options.verbose).c_str(), stdout);
  } else {
    print_report(report, options.verbose);
  }
}

}  // namespace

void add_run(CLI::App& app) {
  CLI::App* verb = app.add_subcommand(
      "run",
      "Answer a question about a long text with a GGUF model through llama.cpp. While the prompt\n"
      "is read, attention is ours: exact in most layers, on the tokens that matter in the sparse\n"
      "ones. Decoding is llama.cpp's own.\n"
      "\n"
      "The defaults are chosen for small models: the heads of a KV head choose together (--share\n"
      "kv_group), which cost no accuracy at 8K tokens where a choice per head did, and a query "
      "that\n"
      "is left out attends to the tokens before it (--dropped local). --coverage 0 is exact\n"
      "attention: the same answer as llama.cpp, sooner.");
  const auto options = std::make_shared<RunOptions>();
  tsp_prefill_params_init(&options->op, sizeof options->op);
  options->op.share = TSP_SHARE_KV_GROUP;
  options->op.dropped = TSP_DROPPED_LOCAL;

  verb->add_option("-m,--model", options->model, "The model, a GGUF file")->required();
  verb->add_option(
          "-f,--file", options->text,
          "The text that the question is about, UTF-8; - reads standard input. A byte order\n"
          "mark and the CR of line ends are dropped, bytes that are not UTF-8 are Latin-1")
      ->required();
  verb->add_option("-p,--prompt", options->question, "The question; it follows the text")
      ->required();
  verb->add_option(
          "--chat-template", options->chat_template,
          "How text and question become a user's turn: model, by the template in the model\n"
          "file; none; the name of one that llama.cpp has built in; or a file with one")
      ->type_name("NAME|FILE|none")
      ->capture_default_str();
  verb->add_option("-n,--predict", options->answer_tokens, "Longest answer, in tokens")
      ->check(between(1, 1 << 20))
      ->capture_default_str();
  verb->add_option("-c,--ctx", options->context,
                   "Context in tokens; what prompt and answer need if not given")
      ->check(between(1, 1 << 30));
  verb->add_option("--ubatch", options->ubatch,
                   "Prompt tokens that go through the layers at once; each such chunk chooses anew")
      ->check(between(64, 1 << 20))
      ->capture_default_str();
  verb->add_option("--sparse-layers", options->sparse_layers,
                   "auto: from MODEL.gguf.tokensparse.json, made first where it is missing; none;\n"
                   "or a list like 7-15,18")
      ->capture_default_str();
  verb->add_flag("--compare", options->compare,
                 "Run three times: stock llama.cpp (flash attention, chunks of 512), exact\n"
                 "attention of ours, sparse attention; and print them side by side");
  verb->add_flag("--json", options->json, "Print JSON and nothing else");
  verb->add_flag("--verbose", options->verbose,
                 "A table of the layers, with what was left to ggml and why; llama.cpp's log");
  add_operator_options(*verb, options->op);
  verb->add_option("--min-keys", options->min_keys,
                   "Keys below which sparse layers attend exactly; so do chunks of fewer queries\n"
                   "than 8 windows: neither would gain. 0: chunks of any length are sparse")
      ->check(between(0, 1 << 30))
      ->capture_default_str()
      ->group("Choosing tokens");
  verb->remove_option(verb->get_option("--precision"));
  verb->add_option("--precision", options->precision,
                   "Arithmetic of attention: f32; bf16, twice as fast, about 3e-3 relative error;\n"
                   "auto: bf16 where the linear layers are in bf16 (--linear) and the CPU has it")
      ->check(CLI::IsMember({"auto", "f32", "bf16"}))
      ->capture_default_str()
      ->group("Where it runs");
  add_linear_options(*verb, options->linear);
  verb->add_option("--isa", options->isa,
                   "CPU instruction set: scalar, avx2, avx512, ...; the best one if not given")
      ->group("Where it runs");
  verb->add_option("--threads", options->threads, "CPU threads; 0 = all this process may use")
      ->check(between(0, 1024))
      ->default_str("0")
      ->group("Where it runs");
  verb->callback([options] { run(*options); });
}

}  // namespace tsp::cli
