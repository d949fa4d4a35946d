// SPDX-License-Identifier: MIT
#include "cli/layer_profile.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "cli/llama_session.h"
#include "cli/openmp_threads.h"
#include "cli/output_file.h"
#include "cli/verbs.h"
#include "ggml.h"

namespace tsp::cli {
namespace {

constexpr const char* kDefaultText = "/usr/share/common-licenses/GPL-3";
constexpr const char* kFormat = "tokensparse layer profile 1";

/// Collects the drift from the layers' outputs, which llama.cpp names "l_out-<layer>".
class DriftMeter {
 public:
  explicit DriftMeter(int32_t num_layers) : sums_(static_cast<size_t>(num_layers), 0) {}

  bool on_node(ggml_tensor* node, bool ask) {
    int layer = -1;
    if (std::strncmp(node->name, "l_out-", 6) != 0 ||
        std::sscanf(node->name, "l_out-%d", &layer) != 1 || node->type != GGML_TYPE_F32) {
      return false;
    }
    if (!ask) add(static_cast<size_t>(layer), *node);
    return true;
  }

  std::vector<double> drift() const {
    std::vector<double> mean(sums_.size(), -1);
    for (size_t layer = 1; layer + 1 < mean.size(); ++layer) {
      if (tokens_ > 0 && sums_[layer] > 0) mean[layer] = sums_[layer] / tokens_;
    }
    return mean;
  }

 private:
  void add(size_t layer, const ggml_tensor& out) {
    const auto size = static_cast<size_t>(out.ne[0]), rows = static_cast<size_t>(out.ne[1]);
    std::vector<float> values(size * rows);
    for (size_t row = 0; row < rows; ++row) {
      std::memcpy(&values[row * size], static_cast<const char*>(out.data) + row * out.nb[1],
                  size * sizeof(float));
    }
    if (layer == 0) tokens_ += static_cast<double>(rows);
    // The last layer computes the rows that become logits alone: its input has others.
    if (layer > 0 && layer + 1 < sums_.size() && values.size() == before_.size()) {
      for (size_t row = 0; row < rows; ++row) {
        sums_[layer] += relative_change(&before_[row * size], &values[row * size], size);
      }
    }
    before_ = std::move(values);
  }

  static double relative_change(const float* before, const float* after, size_t size) {
    double change = 0, norm = 0;
    for (size_t i = 0; i < size; ++i) {
      change += (double{after[i]} - before[i]) * (double{after[i]} - before[i]);
      norm += double{before[i]} * before[i];
    }
    return std::sqrt(change) / (std::sqrt(norm) + 1e-8);
  }

  std::vector<double> sums_;
  std::vector<float> before_;
  double tokens_ = 0;
};

int64_t size_of(const std::string& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  return error ? 0 : static_cast<int64_t>(size);
}

}  // namespace

std::vector<int32_t> layers_of_lowest_drift(const std::vector<double>& drift, double share) {
  std::vector<int32_t> layers;
  for (size_t layer = 1; layer + 1 < drift.size(); ++layer) {
    if (drift[layer] >= 0) layers.push_back(static_cast<int32_t>(layer));
  }
  std::stable_sort(layers.begin(), layers.end(), [&](int32_t a, int32_t b) {
    return drift[static_cast<size_t>(a)] < drift[static_cast<size_t>(b)];
  });
  const auto count = static_cast<size_t>(share * static_cast<double>(drift.size()));
  layers.resize(std::min(layers.size(), count));
  std::sort(layers.begin(), layers.end());
  return layers;
}

LayerProfile measure_profile(const Model& model, const std::string& text, int32_t threads,
                             bool show_progress) {
  const std::vector<llama_token> tokens =
      model.first_tokens(text, std::min(kProfileTokens, model.trained_context()));
  constexpr size_t kFewest = 256;
  if (tokens.size() < kFewest) {
    throw Failure("a profile needs a text of at least 256 tokens, got " +
                  std::to_string(tokens.size()));
  }
  const tokensparse::Context ctx = open_on_openmp("", threads);
  ggml_adapter::Options exact;
  tsp_prefill_params_init(&exact.op, sizeof exact.op);
  ggml_adapter::AttentionServer server(ctx.get(), exact);
  DriftMeter meter(model.num_layers());
  const auto length = static_cast<int32_t>(tokens.size());
  Session session(model, {.context = length, .ubatch = 512, .threads = threads}, &server,
                  [&](ggml_tensor* node, bool ask) { return meter.on_node(node, ask); });
  Progress progress("profile: reading a text", length, show_progress);
  session.read_prompt(tokens, progress);

  LayerProfile profile;
  profile.drift = meter.drift();
  profile.sparse_layers = layers_of_lowest_drift(profile.drift, kSparseShare);
  profile.tokens = length;
  profile.model_bytes = size_of(model.path());
  if (profile.sparse_layers.empty()) {
    throw Failure(model.path() +
                  " has no layer between its first and last whose drift llama.cpp "
                  "shows; --sparse-layers takes a list");
  }
  return profile;
}

std::string default_profile_text() {
  return std::filesystem::exists(kDefaultText) ? read_text(kDefaultText) : std::string();
}

std::string profile_path(const std::string& model_path) { return model_path + ".tokensparse.json"; }

std::string to_json(const LayerProfile& profile, const Model& model) {
  nlohmann::ordered_json json;
  json["format"] = kFormat;
  json["model"] = std::filesystem::path(model.path()).filename().string();
  json["model_bytes"] = profile.model_bytes;
  json["layers"] = profile.drift.size();
  json["tokens"] = profile.tokens;
  json["drift"] = nlohmann::ordered_json::array();
  for (const double drift : profile.drift) {
    json["drift"].push_back(drift < 0 ? nlohmann::ordered_json() : nlohmann::ordered_json(drift));
  }
  json["sparse_layers"] = profile.sparse_layers;
  return json.dump(2) + "\n";
}

void write_profile(const LayerProfile& profile, const Model& model, const std::string& path) {
  const std::string json = to_json(profile, model);
  OutputFile file(path);
  file.write(json.data(), json.size());
  file.commit();
}

bool read_profile(const std::string& path, const Model& model, LayerProfile& profile) {
  if (!std::filesystem::is_regular_file(path)) return false;
  std::ifstream file(path);
  const nlohmann::json json = nlohmann::json::parse(file, nullptr, false);
  const auto damaged = [&](const char* what) {
    return Failure(path + " is not a layer profile: " + what + "; `tokensparse profile` makes one");
  };
  if (!json.is_object() || json.value("format", "") != kFormat) throw damaged("wrong format");
  if (!json.contains("sparse_layers") || !json["sparse_layers"].is_array()) {
    throw damaged("no sparse_layers");
  }
  if (json.value("model_bytes", int64_t{0}) != size_of(model.path())) return false;
  profile = {};
  for (const nlohmann::json& layer : json["sparse_layers"]) {
    if (!layer.is_number_integer() || layer < 0 || layer >= model.num_layers()) {
      throw damaged("sparse_layers names a layer that the model does not have");
    }
    profile.sparse_layers.push_back(layer.get<int32_t>());
  }
  return true;
}

}  // namespace tsp::cli
