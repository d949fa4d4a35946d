// SPDX-License-Identifier: MIT
// `tokensparse eval`: prompts from a file, each under each setting; a line of JSON for each.
#include <unistd.h>
#include <CLI/CLI.hpp>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "adapters/ggml/repeated_key.h"
#include "cli/llama/interrupt.h"
#include "cli/llama/linear.h"
#include "cli/llama/model_run.h"
#include "cli/llama/run_options.h"
#include "cli/options.h"
#include "cli/verbs.h"

namespace tsp::cli {
namespace {

using ggml_adapter::Setting;
using nlohmann::ordered_json;

constexpr const char* kStock = "stock";
constexpr const char* kExact = "exact";
constexpr int32_t kMostTokens = 1 << 20;

struct EvalOptions {
  std::string model, prompts = "-", chat_template = "model";
  std::vector<std::string> settings;
  RunConditions conditions;
  int32_t answer_tokens = 16;
  int32_t threads = 0;
  LinearChoice linear;
  std::optional<tsp_pattern_t> blocks;  // in the place of those of the settings
  bool raw = false, verbose = false;
};

/// A line of the input.
struct Item {
  ordered_json id;
  Prompt prompt;
};

/// What a setting is called in the output, and what it says.
struct Case {
  std::string name;
  bool stock = false;
  Setting setting;
};

std::vector<llama_token> tokens_from(const ordered_json& json, const Model& model,
                                     const std::string& where) {
  const int32_t end = llama_vocab_n_tokens(model.vocab());
  const std::string rule =
      where + " must be a list of tokens, each at least 0 and below " + std::to_string(end);
  if (!json.is_array()) throw Failure(rule);
  std::vector<llama_token> tokens;
  for (const ordered_json& token : json) {
    if (!token.is_number_integer() || token < 0 || token >= end) throw Failure(rule);
    tokens.push_back(token.get<llama_token>());
  }
  return tokens;
}

/// The value of a key as text; throws Failure where it is something else.
std::string text_from(const ordered_json& json, const std::string& where) {
  if (!json.is_string()) throw Failure(where + " must be text");
  return json.get<std::string>();
}

Item read_item(const std::string& line, const std::string& where, const EvalOptions& options,
               const Model& model) {
  std::optional<std::string> repeated;
  const ordered_json json = parse_json<ordered_json>(line, repeated);
  if (!json.is_object()) throw Failure(where + ": must be a JSON object");
  if (repeated.has_value()) throw Failure(where + ": " + *repeated + " must be given once");
  Item item;
  item.prompt.answer_tokens = options.answer_tokens;
  for (const auto& [key, value] : json.items()) {
    const std::string place = where + ": " + key;
    if (key == "id") {
      if (!value.is_string() && !value.is_number()) {
        throw Failure(place + " must be text or a number");
      }
      item.id = value;
    } else if (key == "prompt") {
      const std::string text = text_from(value, place);
      item.prompt.tokens =
          options.raw ? model.raw_tokens(text) : model.message_tokens(text, options.chat_template);
    } else if (key == "tokens") {
      item.prompt.tokens = tokens_from(value, model, place);
    } else if (key == "answer") {
      item.prompt.expected = model.tokens_of(text_from(value, place), false);
    } else if (key == "answer_tokens") {
      item.prompt.expected = tokens_from(value, model, place);
    } else if (key == "max_tokens") {
      if (!value.is_number_integer() || value < 0 || value > kMostTokens) {
        throw Failure(place + " must be an integer between 0 and " + std::to_string(kMostTokens));
      }
      item.prompt.answer_tokens = value.get<int32_t>();
    }  // others are the caller's own
  }
  if (item.id.is_null()) throw Failure(where + ": must have an id");
  if (json.contains("prompt") == json.contains("tokens")) {
    throw Failure(where + ": must have either prompt or tokens");
  }
  if (item.prompt.tokens.empty()) throw Failure(where + ": the prompt must not be empty");
  return item;
}

/// A file is read whole, so that what is wrong in it is said before the work; standard input line
/// by line, as the caller writes it.
class Items {
 public:
  Items(const EvalOptions& options, const Model& model) : options_(options), model_(model) {
    if (options.prompts == "-") return;
    std::ifstream file(options.prompts);
    if (!file) throw Failure("cannot read " + options.prompts);
    Item item;
    while (read(file, options.prompts, item)) items_.push_back(item);
    if (items_.empty()) throw Failure(options.prompts + " has no prompts");
  }

  int64_t count() const { return static_cast<int64_t>(items_.size()); }  // 0 = not known

  bool next(Item& item) {
    if (options_.prompts == "-") return read(std::cin, "standard input", item);
    if (at_ == items_.size()) return false;
    item = items_[at_++];
    return true;
  }

 private:
  bool read(std::istream& input, const std::string& name, Item& item) {
    for (std::string line; std::getline(input, line);) {
      ++line_;
      if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
      item = read_item(line, name + ":" + std::to_string(line_), options_, model_);
      return true;
    }
    stop_if_interrupted();
    return false;
  }

  const EvalOptions& options_;
  const Model& model_;
  std::vector<Item> items_;
  size_t at_ = 0;
  int64_t line_ = 0;
};

std::vector<Case> read_cases(const EvalOptions& options, const ModelRunner& runner) {
  std::vector<Case> cases;
  for (const std::string& name : options.settings) {
    Case each;
    each.name = name;
    each.stock = name == kStock;
    if (name != kStock && name != kExact) {
      const std::string fault = ggml_adapter::read_setting(name, each.setting);
      if (!fault.empty()) throw Failure("--setting: " + fault);
      if (!each.setting.name.empty()) each.name = each.setting.name;
    }
    if (options.blocks.has_value()) each.setting.op.pattern = *options.blocks;
    if (name == kExact) each.setting = ggml_adapter::exact();
    each.setting = runner.settled(each.setting);
    for (const Case& other : cases) {
      if (other.name == each.name) throw Failure("two settings are named " + each.name);
    }
    cases.push_back(each);
  }
  return cases;
}

ordered_json line_of(const Item& item, const Case& each, const RunResult& result) {
  ordered_json line = {{"id", item.id},
                       {"setting", each.name},
                       {"prompt_tokens", item.prompt.tokens.size()},
                       {"answer", result.answer}};
  if (!item.prompt.expected.empty()) {
    line["loss"] = result.loss;
    line["answer_tokens"] = item.prompt.expected.size();
    line["right_tokens"] = result.right;
    line["exact"] = static_cast<size_t>(result.right) == item.prompt.expected.size();
  }
  line["seconds"] = result.ttft_s;
  line["attention_seconds"] = result.attention_s;
  if (each.stock) return line;
  line["kept"] = result.named().kept_share();
  line["kept_of_all"] = result.all().kept_share();
  line["pairs"] = result.all().pairs_share();
  for (const auto& layer : result.layers) {
    line["pairs_by_layer"].push_back(layer.pairs_share());
    line["attention_seconds_by_layer"].push_back(layer.seconds);
  }
  line["sparse_layers"] = result.sparse_layers();
  auto never = ordered_json::array();
  for (const NeverSparse& layers : never_sparse(result, each.setting)) {
    never.push_back({{"layers", layers.layers}, {"why", layers.why}});
  }
  if (!never.empty()) line["never_sparse"] = never;
  return line;
}

void eval(EvalOptions& options) {
  const CatchInterrupt catch_interrupt;
  RunConditions& conditions = options.conditions;
  conditions.threads = open_context({TSP_BACKEND_CPU, conditions.isa, options.threads}).threads();
  open_linear(options.linear, conditions.threads);
  const Model model(options.model, options.verbose, options.linear.server == nullptr);
  fit_linear_to_weights(options.linear, model.weight_type());
  conditions.linear = options.linear.server.get();
  if (options.settings.empty()) options.settings = {kExact, ggml_adapter::kBuiltIn};
  const ModelRunner runner(model, conditions);
  const std::vector<Case> cases = read_cases(options, runner);
  Items items(options, model);
  const int64_t runs = items.count() * static_cast<int64_t>(cases.size());
  Progress progress("eval", runs, runs > 0, "runs");
  int64_t done = 0;
  for (Item item; items.next(item);) {
    for (const Case& each : cases) {
      const RunResult result = each.stock ? runner.stock(item.prompt)
                                          : runner.ours(each.name, item.prompt, each.setting);
      const std::string line =
          line_of(item, each, result).dump(-1, ' ', false, ordered_json::error_handler_t::replace);
      if (std::printf("%s\n", line.c_str()) < 0 || std::fflush(stdout) != 0) {
        throw Failure("cannot write to stdout");
      }
      progress.update(++done);
    }
  }
}

constexpr const char* kFooter =
    "A line of the input: {\"id\": text or number, \"prompt\": text, \"answer\": text}. "
    "\"tokens\", a\n"
    "list, stands for a prompt that is tokenised already, \"answer_tokens\" likewise; "
    "\"max_tokens\" for\n"
    "--predict. Without an answer there is no loss. Other keys are passed over. From standard "
    "input a\n"
    "line is answered before the next one is read.\n"
    "\n"
    "A line of the output, as soon as it is known, prompt by prompt and for each in the order of\n"
    "the settings: id, setting (the name in the file, else the name of the file), prompt_tokens,\n"
    "answer (greedy, of --predict tokens), loss (mean over the answer's tokens of -log p, each "
    "given\n"
    "all before it), answer_tokens and right_tokens (how many there are, and how many were the\n"
    "likeliest), exact (whether all of them were), seconds (to the first token), "
    "attention_seconds, kept (share of the tokens, in "
    "the\n"
    "layers that the setting names), kept_of_all (in all layers), pairs (share of the query-key\n"
    "pairs of dense attention that were computed, in all layers), pairs_by_layer,\n"
    "attention_seconds_by_layer (the library's in each layer), sparse_layers, never_sparse\n"
    "(layers that the setting names and that were not, and why). A run that was cut off goes on\n"
    "where it stopped if the caller leaves out the prompts that it has all lines of.\n"
    "\n"
    "Examples:\n"
    "  tokensparse eval -m MODEL.gguf prompts.jsonl > results.jsonl\n"
    "  tokensparse eval -m MODEL.gguf --setting exact --setting mine.json < prompts.jsonl";

}  // namespace

void add_eval(CLI::App& app) {
  CLI::App* verb = app.add_subcommand(
      "eval", "Answers, losses and times of many prompts under several settings, as JSON lines");
  const auto options = std::make_shared<EvalOptions>();
  verb->add_option("PROMPTS", options->prompts, "JSON lines; - is standard input")
      ->type_name("")
      ->capture_default_str();
  verb->add_option("-m,--model", options->model, "The model, a GGUF file")->required();
  verb->add_option(
          "-s,--setting", options->settings,
          "A setting file, or built-in, recommended (what was measured on such a model, else\n"
          "built-in), exact (attention of ours), stock (llama.cpp's);\n"
          "once for each setting [exact and built-in]")
      ->type_name("FILE")
      ->allow_extra_args(false);
  const auto blocks = std::make_shared<tsp_pattern_t>();
  add_blocks_option(*verb, *blocks);
  verb->add_option("-n,--predict", options->answer_tokens, "Tokens of answer to write; 0 = none")
      ->check(between(0, kMostTokens))
      ->capture_default_str();
  CLI::Option* chat = add_chat_template(*verb, options->chat_template);
  verb->add_flag("--raw", options->raw,
                 "Take prompts as they are, markers of the model's template included, instead of\n"
                 "as a message in a chat template")
      ->excludes(chat);
  verb->add_flag("--verbose", options->verbose, "Let llama.cpp's log through to stderr");
  add_run_conditions(*verb, options->conditions, options->threads);
  add_linear_options(*verb, options->linear);
  verb->footer(kFooter);
  verb->callback([options, blocks, verb] {
    if (verb->count("--blocks") > 0) options->blocks = *blocks;
    eval(*options);
  });
}

}  // namespace tsp::cli
