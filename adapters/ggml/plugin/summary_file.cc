// SPDX-License-Identifier: MIT
#include "adapters/ggml/plugin/summary_file.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>

#include "tokensparse/tokensparse.h"

namespace tsp::ggml_plugin {
namespace {

using ggml_adapter::LayerStats;
using ggml_adapter::Refusal;
using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "tokensparse summary 1";

Json left_to_ggml(const LayerStats& stats) {
  Json left = Json::object();
  for (size_t i = 0; i < stats.refused.size(); ++i) {
    if (stats.refused[i] > 0) {
      left[ggml_adapter::refusal_text(static_cast<Refusal>(i))] = stats.refused[i];
    }
  }
  return left;
}

Json numbers(const LayerStats& stats) {
  return {{"nodes", stats.served},
          {"sparse_nodes", stats.sparse},
          {"exact_for_min_keys", stats.few_keys},
          {"exact_for_min_rows", stats.few_rows},
          {"exact_all_kept", stats.kept_all},
          {"query_rows", stats.served_rows},
          {"kept_share", stats.kept_share()},
          {"pairs_share", stats.pairs_share()},
          {"seconds", stats.seconds}};
}

/// Null where no layer is named as sparse.
Json kept_share_of_sparse(const std::vector<LayerStats>& layers) {
  LayerStats named;
  for (const LayerStats& layer : layers) {
    if (layer.named) named.add(layer);
  }
  return named.keys > 0 ? Json(named.kept_share()) : Json();
}

Json of_prompt(const Prompt& prompt) {
  LayerStats all;
  for (const LayerStats& layer : prompt.layers) all.add(layer);
  Json json = {{"chunks", prompt.chunks}, {"query_rows", prompt.rows}, {"keys", prompt.keys}};
  json["seconds"] = prompt.seconds;
  json["attention"] = numbers(all);
  json["kept_share_of_sparse_layers"] = kept_share_of_sparse(prompt.layers);
  return json;
}

}  // namespace

std::string summary_json(const SummaryHead& head, const Totals& totals,
                         const ggml_adapter::Setting& setting, const std::string& hint) {
  const LayerStats sum = sum_of(totals);
  Json json = {{"format", kFormat}, {"tokensparse", tsp_version()}, {"ggml", head.ggml}};
  json["isa"] = head.isa;
  json["settings"] = head.settings;
  json["prompts"] = totals.prompts;
  json["last_prompt"] = totals.prompts > 0 ? of_prompt(totals.last_prompt) : Json();
  json["attention"] = numbers(sum);
  json["kept_share_of_sparse_layers"] = kept_share_of_sparse(totals.layers);
  json["left_to_ggml"] = left_to_ggml(sum);
  json["linear"] = {{"nodes", totals.linear}, {"seconds", totals.linear_seconds}};
  json["workspace_bytes"] = totals.memory_bytes;
  if (totals.verified > 0) {
    json["verified"] = {{"nodes", totals.verified}, {"largest_difference", totals.worst_error}};
  }
  json["hint"] = hint;
  json["layers"] = Json::array();
  for (size_t i = 0; i < totals.layers.size(); ++i) {
    const LayerStats& layer = totals.layers[i];
    Json entry = {{"layer", i}, {"named_sparse", layer.named}};
    entry.update(numbers(layer));
    entry["never_sparse"] = why_never_sparse(layer, setting.min_keys, setting.min_rows);
    entry["left_to_ggml"] = left_to_ggml(layer);
    json["layers"].push_back(entry);
  }
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string write_whole_file(const std::string& path, const std::string& text) {
  const std::string beside = path + ".new";
  std::FILE* file = std::fopen(beside.c_str(), "wb");
  if (file == nullptr) return "cannot write " + path + ": " + std::strerror(errno);
  errno = 0;
  bool good = std::fwrite(text.data(), 1, text.size(), file) == text.size();
  good = std::fclose(file) == 0 && good;
  if (good && std::rename(beside.c_str(), path.c_str()) == 0) return "";
  const std::string why = std::strerror(errno != 0 ? errno : EIO);
  std::remove(beside.c_str());
  return "cannot write " + path + ": " + why;
}

}  // namespace tsp::ggml_plugin
