// SPDX-License-Identifier: MIT
// Which layers of a model may leave tokens out: those that change the residual stream least. Found
// once per model by reading a text, and kept in a JSON file beside it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/llama/model.h"

namespace tsp::cli {

inline constexpr double kSparseShare = 0.5;  // of the layers, by drift; the paper's delta
inline constexpr int32_t kProfileTokens = 4096;
inline constexpr size_t kProfileBytes = size_t{8} << 20;  // of a text that are read for them

struct LayerProfile {
  /// By layer: mean over tokens of |h_out - h_in| / (|h_in| + 1e-8). -1 where it is not known: the
  /// first and the last layer, which are never sparse.
  std::vector<double> drift;
  /// By layer: attends to the whole prompt, in a way that is ours to serve.
  std::vector<bool> can_be_sparse;
  std::vector<int32_t> sparse_layers;  // ascending
  int32_t tokens = 0;                  // of the text that was read
  int64_t model_bytes = 0;
};

/// Of the layers that can be sparse the `share` with the lowest drift, never the first or the last
/// of the model.
std::vector<int32_t> layers_of_lowest_drift(const std::vector<double>& drift,
                                            const std::vector<bool>& can_be_sparse, double share);

/// Reads the first tokens of `text` with exact attention: kProfileTokens, or more where a sliding
/// window is as long. Throws Failure.
LayerProfile measure_profile(const Model& model, const std::string& text, int32_t threads,
                             bool show_progress);

/// The text that a profile is made from when none is given: a licence that Debian and Ubuntu carry.
/// Empty where the machine does not have it.
std::string default_profile_text();

std::string profile_path(const std::string& model_path);
/// Where one is kept that cannot lie beside the model; empty where there is no home either.
std::string cached_profile_path(const std::string& model_path);  // MODEL.gguf.tokensparse.json
std::string to_json(const LayerProfile& profile, const Model& model);
void write_profile(const LayerProfile& profile, const Model& model, const std::string& path);
/// False when there is none or it belongs to another model (it knows the model's size). Throws
/// Failure when the file is damaged.
bool read_profile(const std::string& path, const Model& model, LayerProfile& profile);

}  // namespace tsp::cli
