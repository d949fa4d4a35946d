// SPDX-License-Identifier: MIT
// `tokensparse run`: a question about a long text, answered by a GGUF model through llama.cpp, with
// attention of ours while it reads the prompt.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <utility>

#include "cli/llama/draft_votes.h"
#include "cli/llama/interrupt.h"
#include "cli/llama/layer_profile.h"
#include "cli/llama/linear.h"
#include "cli/llama/model_run.h"
#include "cli/llama/run_options.h"
#include "cli/llama/run_report.h"
#include "cli/options.h"
#include "cli/verbs.h"

namespace tsp::cli {
namespace {

using ggml_adapter::LayerChoice;
using ggml_adapter::Setting;

enum Method : int32_t { kTsa, kSts };

struct RunOptions {
  std::string model, text, question, chat_template = "model";
  Setting setting;
  RunConditions conditions;
  int32_t answer_tokens = 64;
  int32_t threads = 0;
  LinearChoice linear;
  int32_t method = kTsa;
  std::string draft, head_map;
  bool profile = false, compare = false, json = false, verbose = false;
};

/// False where that was not possible; says so.
bool store(const LayerProfile& profile, const Model& model, const std::string& path, bool tell) {
  try {
    write_profile(profile, model, path);
    if (tell) std::fprintf(stderr, "layer profile stored in %s\n", path.c_str());
    return true;
  } catch (const Failure& failure) {
    if (tell) std::fprintf(stderr, "layer profile not stored: %s\n", failure.what());
    return false;
  }
}

/// The profile beside the model, or of a folder that cannot be written in the cache; made and
/// stored first where there is none.
std::vector<int32_t> profiled_layers(const RunOptions& options, const Model& model,
                                     const std::string& text, int32_t threads) {
  const std::string beside = profile_path(options.model);
  const std::string cached = cached_profile_path(options.model);
  LayerProfile profile;
  if (read_profile(beside, model, profile) || read_profile(cached, model, profile)) {
    return profile.sparse_layers;
  }
  const std::string standard = default_profile_text();
  profile = measure_profile(model, standard.empty() ? text : standard, threads, !options.json);
  if (!store(profile, model, beside, !options.json) && !cached.empty()) {
    std::error_code error;  // what comes of it the next line says
    std::filesystem::create_directories(std::filesystem::path(cached).parent_path(), error);
    store(profile, model, cached, !options.json);
  }
  return profile.sparse_layers;
}

/// Why no layer of this prompt chooses tokens; empty where one may.
std::string why_exact(const RunOptions& options, size_t prompt_tokens) {
  const Setting& setting = options.setting;
  const auto tokens = static_cast<int64_t>(prompt_tokens);
  if (!setting.sparse()) return "";
  if (tokens < setting.min_keys) {
    return "fewer than " + std::to_string(setting.min_keys) + " tokens (--min-keys)";
  }
  if (std::min<int64_t>(options.conditions.chunk(), tokens) < setting.min_rows) {
    return "fewer than " + std::to_string(setting.min_rows) +
           " tokens at once (--min-rows; --ubatch gives more)";
  }
  if (!setting.chooses_blocks() && tokens <= int64_t{setting.op.min_tokens} + setting.op.window) {
    return "no more tokens than --min-tokens and --window keep";
  }
  return "";
}

void check_method(const RunOptions& options) {
  const bool sts = options.method == kSts;
  if (sts && (options.draft.empty() || options.head_map.empty())) {
    throw Failure("--method sts: needs --draft and --head-map", kExitUsage);
  }
  if (!sts && !(options.draft.empty() && options.head_map.empty())) {
    throw Failure("--draft and --head-map: must go with --method sts", kExitUsage);
  }
}

/// What a draft found in the prompt, which it reads where something `may_choose`; null where nobody
/// asks it. The draft is gone when it returns.
std::unique_ptr<DraftVotes> draft_votes(const RunOptions& options, const Model& model,
                                        const std::vector<llama_token>& prompt, bool may_choose) {
  if (options.method != kSts) return nullptr;
  HeadMap map(options.head_map);
  LinearChoice linear;
  linear.who = options.linear.who;
  open_linear(linear, options.conditions.threads);
  const Model draft(options.draft, options.verbose, linear.server == nullptr);
  fit_linear_to_weights(linear, draft.weight_type());
  check_same_tokens(model, draft);
  map.check(numbers_of(model), numbers_of(draft));
  auto votes = std::make_unique<DraftVotes>(std::move(map), options.setting, options.conditions);
  if (may_choose) votes->read(draft, prompt, linear.server.get());
  return votes;
}

void print(const RunReport& report, const RunOptions& options) {
  if (options.json) {
    std::fputs(to_json(report, options.verbose).c_str(), stdout);
  } else {
    print_report(report, options.verbose);
  }
}

void run(RunOptions& options) {
  const CatchInterrupt catch_interrupt;
  check_method(options);
  const bool blank = options.question.find_first_not_of(" \t\r\n") == std::string::npos;
  if (blank) throw Failure("--prompt: must not be empty", kExitUsage);
  std::string note;
  const std::string text = read_text(options.text, &note);
  if (!note.empty() && !options.json) std::fprintf(stderr, "tokensparse: note: %s\n", note.c_str());
  RunConditions& conditions = options.conditions;
  conditions.progress = !options.json;
  conditions.threads = open_context({TSP_BACKEND_CPU, conditions.isa, options.threads}).threads();
  open_linear(options.linear, conditions.threads);
  const bool repack = options.linear.server == nullptr;
  auto model = std::make_unique<const Model>(options.model, options.verbose, repack);
  fit_linear_to_weights(options.linear, model->weight_type());
  conditions.linear = options.linear.server.get();
  Setting& setting = options.setting;
  const bool recommended = setting.recommended;
  setting = ModelRunner(*model, conditions).settled(setting);

  RunReport report;
  if (recommended) report.measured_on = setting.model.name;
  report.linear = options.linear.description;
  report.precision = setting.op.precision == TSP_PRECISION_BF16 ? "bf16" : "f32";
  report.model = std::filesystem::path(options.model).filename().string();
  report.threads = conditions.threads;
  model->check_length(text, options.text,
                      conditions.context > 0 ? conditions.context : model->trained_context());
  Prompt prompt;
  prompt.tokens =
      model->prompt_tokens(text, options.question, options.chat_template, &report.chat_template);
  prompt.answer_tokens = options.answer_tokens;
  report.prompt_tokens = static_cast<int64_t>(prompt.tokens.size());
  ModelRunner(*model, conditions).probe(prompt, setting);
  report.why_exact = why_exact(options, prompt.tokens.size());
  if (options.profile && setting.sparse() && report.why_exact.empty()) {
    setting.layers = LayerChoice::of(profiled_layers(options, *model, text, conditions.threads));
  }
  report.setting = setting;

  if (options.compare) {
    // Stock has its weights as llama.cpp likes them, and no second copy in its peak memory.
    if (!repack) {
      model.reset();
      model = std::make_unique<const Model>(options.model, options.verbose);
    }
    report.variants.push_back(ModelRunner(*model, conditions).stock(prompt));
    if (!repack) {
      model.reset();
      model = std::make_unique<const Model>(options.model, options.verbose, repack);
    }
  }
  AnswerPrinter printer;
  report.answer_shown = !options.compare && !options.json;
  if (report.answer_shown) {
    conditions.on_answer = [&printer](const std::string& piece) { printer.print(piece); };
  }
  const auto votes =
      draft_votes(options, *model, prompt.tokens, setting.sparse() && report.why_exact.empty());
  if (votes != nullptr) {
    report.draft = std::filesystem::path(options.draft).filename().string();
    conditions.choose = [&votes](int32_t layer, int32_t rows, int32_t keys,
                                 tsp_index_sets_t& sets) {
      return votes->choose(layer, rows, keys, sets);
    };
  }
  const ModelRunner runner(*model, conditions);
  if (options.compare || !setting.sparse()) {
    report.variants.push_back(runner.ours("exact", prompt, exact(setting)));
  }
  if (setting.sparse()) {
    RunResult& sparse = report.variants.emplace_back(runner.ours("sparse", prompt, setting));
    if (votes != nullptr) sparse.ttft_s += sparse.draft_s = votes->seconds();
  }
  print(report, options);
}

}  // namespace

void add_run(CLI::App& app) {
  CLI::App* verb = app.add_subcommand(
      "run",
      "Answer a question about a long text with a GGUF model through llama.cpp. While the prompt\n"
      "is read, attention is ours: in the sparse layers on the tokens that matter, exact in the\n"
      "others. Decoding is llama.cpp's own.\n"
      "\n"
      "Where a setting was measured on such a model it is taken, and said (--setting "
      "recommended).\n"
      "The built-in setting: the heads of a KV head choose together (--share kv_group), and a "
      "query\n"
      "that is left out attends to the first tokens and those before it (--dropped local); so all\n"
      "layers but the first and the last can be sparse. --coverage 0 is exact attention, or with\n"
      "--blocks attention by blocks alone.");
  const auto options = std::make_shared<RunOptions>();
  RunConditions& conditions = options->conditions;

  verb->add_option("-m,--model", options->model, "The model, a GGUF file")->required();
  verb->add_option(
          "-f,--file", options->text,
          "The text that the question is about, UTF-8; - reads standard input. A byte order\n"
          "mark and the CR of line ends are dropped, bytes that are not UTF-8 are Latin-1")
      ->required();
  verb->add_option("-p,--prompt", options->question, "The question; it follows the text")
      ->required();
  add_chat_template(*verb, options->chat_template);
  verb->add_option("-n,--predict", options->answer_tokens, "Longest answer, in tokens")
      ->check(between(1, 1 << 20))
      ->capture_default_str();
  add_setting_options(*verb, options->setting);
  verb->add_flag("--profile", options->profile,
                 "Sparse are the layers of MODEL.gguf.tokensparse.json, made first where it is\n"
                 "missing (`tokensparse profile`), instead of --layers")
      ->group("Choosing tokens");
  add_choice(
      *verb, "--method", options->method, {"tsa", "sts"},
      "Whose votes choose the tokens: the layers' own last queries (token sparse attention), or\n"
      "those of a draft that reads the prompt first (STS), its time counted")
      ->group("Choosing tokens");
  verb->add_option("--draft", options->draft,
                   "Of --method sts: a smaller model with the same tokenizer, a GGUF file")
      ->group("Choosing tokens");
  verb->add_option(
          "--head-map", options->head_map,
          "Of --method sts: which heads of the draft choose for which KV heads of the model,\n"
          "what `python -m lab head-map` writes")
      ->type_name("FILE")
      ->group("Choosing tokens");
  verb->add_flag("--compare", options->compare,
                 "Run three times: stock llama.cpp (flash attention, chunks of 512), exact\n"
                 "attention of ours, sparse attention; and print them side by side");
  verb->add_flag("--json", options->json, "Print JSON and nothing else");
  verb->add_flag("--verbose", options->verbose,
                 "A table of the layers, with what was left to ggml and why; llama.cpp's log");
  add_run_conditions(*verb, conditions, options->threads);
  add_linear_options(*verb, options->linear);
  verb->callback([options] { run(*options); });
}

}  // namespace tsp::cli
