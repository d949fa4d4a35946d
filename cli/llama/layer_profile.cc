// SPDX-License-Identifier: MIT
#include "cli/llama/layer_profile.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>

#include "adapters/ggml/setting.h"
#include "cli/llama/model_run.h"
#include "cli/llama/openmp_threads.h"
#include "cli/llama/session.h"
#include "cli/output_file.h"
#include "cli/verbs.h"
#include "ggml.h"

namespace tsp::cli {
namespace {

constexpr const char* kDefaultText = "/usr/share/common-licenses/GPL-3";
constexpr const char* kFormat = "tokensparse layer profile 1";
constexpr int32_t kFewestTokens = 256;

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

std::vector<int32_t> layers_of_lowest_drift(const std::vector<double>& drift,
                                            const std::vector<bool>& can_be_sparse, double share) {
  std::vector<int32_t> layers;
  size_t able = 0;
  for (size_t layer = 0; layer < drift.size(); ++layer) {
    able += can_be_sparse[layer];
    const bool inner = layer > 0 && layer + 1 < drift.size();
    if (inner && can_be_sparse[layer] && drift[layer] >= 0) {
      layers.push_back(static_cast<int32_t>(layer));
    }
  }
  std::stable_sort(layers.begin(), layers.end(), [&](int32_t a, int32_t b) {
    return drift[static_cast<size_t>(a)] < drift[static_cast<size_t>(b)];
  });
  const auto count = static_cast<size_t>(share * static_cast<double>(able));
  layers.resize(std::min(layers.size(), count));
  std::sort(layers.begin(), layers.end());
  return layers;
}

namespace {

/// Long enough to slide a window over; no longer than that, or than what a drift needs.
std::vector<llama_token> profile_tokens(const Model& model, const std::string& text) {
  const int32_t window = llama_model_n_swa(model.get());
  const int32_t wanted = std::max(kProfileTokens, window + kFewestTokens);
  const int32_t limit = std::min(wanted, model.trained_context());
  std::vector<llama_token> tokens = model.first_tokens(text, limit);
  const int32_t fewest = window > 0 ? window + kFewestTokens : kFewestTokens;
  if (tokens.size() < static_cast<size_t>(fewest)) {
    throw Failure("a profile needs a text of at least " + std::to_string(fewest) + " tokens, got " +
                  std::to_string(tokens.size()));
  }
  return tokens;
}

/// By layer: whether all of the text was served, which a sliding window or linear attention is not.
std::vector<bool> wholly_served(const ggml_adapter::AttentionServer& server, int32_t num_layers) {
  using ggml_adapter::Refusal;
  std::vector<bool> served(static_cast<size_t>(num_layers), false);
  for (size_t layer = 0; layer < std::min(served.size(), server.layers().size()); ++layer) {
    const ggml_adapter::LayerStats& stats = server.layers()[layer];
    int64_t refused = 0;
    for (const int64_t count : stats.refused) refused += count;
    refused -= stats.refused[static_cast<size_t>(Refusal::kShortChunk)];
    served[layer] = stats.served > 0 && refused == 0;
  }
  return served;
}

}  // namespace

LayerProfile measure_profile(const Model& model, const std::string& text, int32_t threads,
                             bool show_progress) {
  const std::vector<llama_token> tokens = profile_tokens(model, text);
  const tokensparse::Context ctx = open_on_openmp("", threads);
  ggml_adapter::AttentionServer server(ctx.get(), {});
  DriftMeter meter(model.num_layers());
  const auto length = static_cast<int32_t>(tokens.size());
  Session session(model, {.context = length, .ubatch = 512, .threads = threads}, &server,
                  [&](ggml_tensor* node, bool ask) { return meter.on_node(node, ask); });
  Progress progress("profile: reading a text", length, show_progress);
  session.read_prompt(tokens, progress);

  LayerProfile profile;
  profile.drift = meter.drift();
  profile.can_be_sparse = wholly_served(server, model.num_layers());
  profile.sparse_layers =
      layers_of_lowest_drift(profile.drift, profile.can_be_sparse, kSparseShare);
  profile.tokens = length;
  profile.model_bytes = size_of(model.path());
  if (profile.sparse_layers.empty()) {
    throw Failure(model.path() +
                  " has no layer between its first and last that attends to the whole prompt and "
                  "whose drift llama.cpp shows; --layers takes a list");
  }
  return profile;
}

std::string default_profile_text() {
  return std::filesystem::exists(kDefaultText) ? read_text(kDefaultText) : std::string();
}

std::string profile_path(const std::string& model_path) { return model_path + ".tokensparse.json"; }

std::string cached_profile_path(const std::string& model_path) {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::filesystem::path(value != nullptr ? value : "");
  };
  std::filesystem::path folder = variable("XDG_CACHE_HOME");
  if (folder.empty() && !variable("HOME").empty()) folder = variable("HOME") / ".cache";
  if (folder.empty()) return "";
  return folder / "tokensparse" / profile_path(std::filesystem::path(model_path).filename());
}

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
  ggml_adapter::Setting setting;
  const std::string fault = ggml_adapter::read_setting(path, setting);
  if (!fault.empty()) throw Failure(fault + "; `tokensparse profile` makes one");
  const int64_t bytes = setting.model.file_bytes;
  if (bytes != 0 && bytes != size_of(model.path())) return false;
  if (!contradiction(setting.model, numbers_of(model)).empty()) return false;
  profile = {};
  profile.sparse_layers = setting.layers.layers(model.num_layers());
  return true;
}

}  // namespace tsp::cli
