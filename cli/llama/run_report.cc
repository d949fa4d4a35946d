// SPDX-License-Identifier: MIT
#include "cli/llama/run_report.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <utility>

namespace tsp::cli {
namespace {

using ggml_adapter::LayerChoice;
using ggml_adapter::LayerStats;
using ggml_adapter::LinearRefusal;
using ggml_adapter::LinearStats;
using ggml_adapter::Refusal;

constexpr size_t kShortChunk = static_cast<size_t>(Refusal::kShortChunk);
constexpr size_t kNumRefusals = static_cast<size_t>(Refusal::kCount);

const RunResult* find(const RunReport& report, const char* name) {
  const auto at = std::find_if(report.variants.begin(), report.variants.end(),
                               [&](const RunResult& v) { return v.name == name; });
  return at == report.variants.end() ? nullptr : &*at;
}

void print_variant(const RunResult& variant, const RunResult* stock) {
  std::printf("%-7s  %10.2f s  %8.2f s  %4.0f %%", variant.name.c_str(), variant.ttft_s,
              variant.attention_s, 100 * variant.attention_s / variant.ttft_s);
  if (variant.decode_tps > 0) {
    std::printf("  %8.1f", variant.decode_tps);
  } else {
    std::printf("  %8s", "-");
  }
  std::printf("  %5.1f %%  %5.1f %%  %5.1f %%", 100 * variant.named().kept_share(),
              100 * variant.all().kept_share(), 100 * variant.all().pairs_share());
  if (variant.peak_bytes > 0) {
    std::printf("  %7.2f GB", static_cast<double>(variant.peak_bytes) * 1e-9);
  } else {
    std::printf("  %10s", "-");
  }
  if (stock != nullptr) {
    const double gain = &variant == stock ? 1 : variant.attention_gain(*stock);
    std::printf("  %7.2fx  %8.2fx", stock->ttft_s / variant.ttft_s, gain);
  }
  std::printf("\n");
}

void print_layers(const RunResult& variant) {
  int64_t short_chunks = 0;
  std::printf(
      "\n%s, layer by layer\nlayer  chunks served  kept     pairs    seconds  exact or left to "
      "ggml\n",
      variant.name.c_str());
  for (size_t index = 0; index < variant.layers.size(); ++index) {
    const LayerStats& layer = variant.layers[index];
    std::printf("%5zu  %13lld  %5.1f %%  %5.1f %%  %7.3f", index,
                static_cast<long long>(layer.served), 100 * layer.kept_share(),
                100 * layer.pairs_share(), layer.seconds);
    short_chunks += layer.refused[kShortChunk];
    const char* separator = "  ";
    for (const auto& [count, why] :
         {std::pair{layer.few_keys, "exact, few keys (--min-keys)"},
          std::pair{layer.few_rows, "exact, few queries at once (--min-rows)"},
          std::pair{layer.kept_all, "nothing left out"}}) {
      if (count == 0) continue;
      std::printf("%s%lld x %s", separator, static_cast<long long>(count), why);
      separator = ", ";
    }
    for (size_t reason = 0; reason < kNumRefusals; ++reason) {
      if (layer.refused[reason] == 0 || reason == kShortChunk) continue;
      std::printf("%s%lld x %s", separator, static_cast<long long>(layer.refused[reason]),
                  ggml_adapter::refusal_text(static_cast<Refusal>(reason)));
      separator = ", ";
    }
    std::printf("\n");
  }
  std::printf("and from all layers %lld nodes with %s\n", static_cast<long long>(short_chunks),
              ggml_adapter::refusal_text(Refusal::kShortChunk));
}

void print_linear(const RunResult& variant) {
  const LinearStats& stats = variant.linear;
  std::printf("\n%s, linear layers\n%lld nodes served in %.2f s, %.2f s of it for dequantising; ",
              variant.name.c_str(), static_cast<long long>(stats.served), stats.seconds,
              stats.weight_s);
  std::printf("%.0f GFLOP/s; %.0f MB of memory\n", stats.gflop / std::max(stats.seconds, 1e-9),
              static_cast<double>(variant.linear_bytes) * 1e-6);
  for (size_t reason = 0; reason < stats.refused.size(); ++reason) {
    if (stats.refused[reason] == 0) continue;
    std::printf("left to ggml: %lld x %s\n", static_cast<long long>(stats.refused[reason]),
                ggml_adapter::refusal_text(static_cast<LinearRefusal>(reason)));
  }
}

nlohmann::ordered_json linear_json(const RunResult& variant) {
  const LinearStats& stats = variant.linear;
  nlohmann::ordered_json entry = {{"served", stats.served},
                                  {"linear_s", stats.seconds},
                                  {"dequantise_s", stats.weight_s},
                                  {"gflops", stats.gflop / std::max(stats.seconds, 1e-9)},
                                  {"bytes", variant.linear_bytes}};
  auto& refused = entry["left_to_ggml"] = nlohmann::ordered_json::object();
  for (size_t reason = 0; reason < stats.refused.size(); ++reason) {
    if (stats.refused[reason] == 0) continue;
    refused[ggml_adapter::refusal_text(static_cast<LinearRefusal>(reason))] = stats.refused[reason];
  }
  return entry;
}

nlohmann::ordered_json layers_json(const RunResult& variant) {
  auto list = nlohmann::ordered_json::array();
  for (const LayerStats& layer : variant.layers) {
    nlohmann::ordered_json entry = {{"served", layer.served},       {"sparse", layer.sparse},
                                    {"few_keys", layer.few_keys},   {"few_rows", layer.few_rows},
                                    {"kept_all", layer.kept_all},   {"kept", layer.kept_share()},
                                    {"pairs", layer.pairs_share()}, {"attention_s", layer.seconds}};
    auto& refused = entry["left_to_ggml"] = nlohmann::ordered_json::object();
    for (size_t reason = 0; reason < kNumRefusals; ++reason) {
      if (layer.refused[reason] == 0) continue;
      refused[ggml_adapter::refusal_text(static_cast<Refusal>(reason))] = layer.refused[reason];
    }
    list.push_back(entry);
  }
  return list;
}

/// "22 sparse layers (1-22)", and which of the setting's are not among them.
std::string layers_text(const RunReport& report) {
  const RunResult* sparse = find(report, "sparse");
  if (sparse == nullptr) return "no sparse layers";
  const std::vector<int32_t> layers = sparse->sparse_layers();
  std::string text = std::to_string(layers.size()) + " sparse layers";
  if (!layers.empty()) text += " (" + LayerChoice::of(layers).text() + ")";
  return report.why_exact.empty() ? text : text + " (" + report.why_exact + ")";
}

void print_never_sparse(const RunReport& report) {
  const RunResult* sparse = find(report, "sparse");
  if (sparse == nullptr || !report.why_exact.empty()) return;
  for (const NeverSparse& never : never_sparse(*sparse, report.setting)) {
    std::printf("never sparse, though layers are %s: %s: %s\n",
                report.setting.layers.text().c_str(), LayerChoice::of(never.layers).text().c_str(),
                never.why.c_str());
  }
}

void add_sparsity(nlohmann::ordered_json& json, const RunReport& report) {
  const RunResult* sparse = find(report, "sparse");
  json["layers"] = report.setting.sparse() ? report.setting.layers.text() : "none";
  json["sparse_layers"] = sparse != nullptr ? sparse->sparse_layers() : std::vector<int32_t>();
  if (!report.measured_on.empty()) json["measured_on"] = report.measured_on;
  if (!report.why_exact.empty()) json["why_exact"] = report.why_exact;
  if (sparse == nullptr) return;
  auto list = nlohmann::ordered_json::array();
  for (const NeverSparse& never : never_sparse(*sparse, report.setting)) {
    list.push_back({{"layers", never.layers}, {"why", never.why}});
  }
  if (!list.empty()) json["never_sparse"] = list;
}

}  // namespace

void AnswerPrinter::print(const std::string& piece) {
  constexpr const char* kSpace = " \n\t\r";
  held_ += piece;
  if (!started_) held_.erase(0, std::min(held_.find_first_not_of(kSpace), held_.size()));
  const size_t last = held_.find_last_not_of(kSpace);
  if (last == std::string::npos) return;
  started_ = true;
  std::fwrite(held_.data(), 1, last + 1, stdout);
  std::fflush(stdout);
  held_.erase(0, last + 1);
}

void print_report(const RunReport& report, bool with_layers) {
  if (report.answer_shown && !report.variants.front().answer.empty()) std::printf("\n\n");
  std::printf(
      "%lld prompt tokens, chat template: %s, %d threads, %s, attention in %s, linear layers "
      "by %s\n",
      static_cast<long long>(report.prompt_tokens), report.chat_template.c_str(), report.threads,
      layers_text(report).c_str(), report.precision.c_str(), report.linear.c_str());
  if (!report.measured_on.empty()) {
    std::printf("setting: the one measured on %s\n", report.measured_on.c_str());
  }
  print_never_sparse(report);
  const RunResult* stock = find(report, "stock");
  std::printf("\n%-7s  %12s  %10s  %6s  %8s  %7s  %7s  %7s  %10s", "", "first token", "attention",
              "of it", "tokens/s", "kept", "of all", "pairs", "peak");
  if (stock != nullptr) std::printf("  %8s  %9s", "faster", "attention");
  std::printf("\n");
  for (const RunResult& variant : report.variants) print_variant(variant, stock);
  if (const RunResult* sparse = find(report, "sparse"); sparse != nullptr && sparse->draft_s > 0) {
    std::printf("\nsparse: %s chose the tokens and took %.2f s of the time to the first token\n",
                report.draft.c_str(), sparse->draft_s);
  }
  for (const RunResult& variant : report.variants) {
    const bool silent = variant.answer.empty();
    if (report.answer_shown && !silent) continue;
    std::printf("\n%s answers:\n  %s\n", variant.name.c_str(),
                silent ? "(nothing: the model ended its answer at once)" : variant.answer.c_str());
  }
  if (!with_layers) return;
  std::printf(
      "\nkept: share of the tokens, in the sparse layers; of all: in all layers; pairs:\n"
      "query-key pairs computed, of all that dense attention computes in all layers; attention,\n"
      "how many times as fast: in the layers that are ours\n");
  for (const RunResult& variant : report.variants) {
    if (!variant.layers.empty()) print_layers(variant);
    if (variant.linear.served > 0) print_linear(variant);
  }
}

std::string to_json(const RunReport& report, bool with_layers) {
  nlohmann::ordered_json json = {{"model", report.model},
                                 {"prompt_tokens", report.prompt_tokens},
                                 {"chat_template", report.chat_template},
                                 {"threads", report.threads}};
  add_sparsity(json, report);
  json["method"] = report.draft.empty() ? "tsa" : "sts";
  if (!report.draft.empty()) json["draft"] = report.draft;
  json["precision"] = report.precision;
  json["linear"] = report.linear;
  for (const RunResult& variant : report.variants) {
    nlohmann::ordered_json entry = {{"answer", variant.answer},
                                    {"ttft_s", variant.ttft_s},
                                    {"attention_s", variant.attention_s},
                                    {"decode_tps", variant.decode_tps},
                                    {"kept", variant.named().kept_share()},
                                    {"kept_of_all", variant.all().kept_share()},
                                    {"pairs", variant.all().pairs_share()}};
    if (variant.draft_s > 0) entry["draft_s"] = variant.draft_s;
    if (variant.peak_bytes > 0) entry["peak_bytes"] = variant.peak_bytes;
    if (variant.linear.served > 0) entry["linear"] = linear_json(variant);
    if (with_layers && !variant.layers.empty()) entry["layers"] = layers_json(variant);
    json[variant.name] = entry;
  }
  // An answer may be cut inside a character.
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace tsp::cli
