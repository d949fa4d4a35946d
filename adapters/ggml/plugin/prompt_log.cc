// SPDX-License-Identifier: MIT
#include "adapters/ggml/plugin/prompt_log.h"

#include <algorithm>

namespace tsp::ggml_plugin {

using ggml_adapter::LayerStats;

namespace {

void add_layers(const std::vector<LayerStats>& more, std::vector<LayerStats>& layers) {
  layers.resize(std::max(layers.size(), more.size()));
  for (size_t i = 0; i < more.size(); ++i) layers[i].add(more[i]);
}

}  // namespace

// Layers come in ascending order: a lower one is the next chunk's.
void PromptLog::add(int32_t layer, const std::vector<LayerStats>& layers) {
  if (layer <= layer_) end_chunk();
  const auto now = Clock::now();
  if (chunk_.layers.empty()) {
    double seconds = 0;  // it has begun before the node was served
    for (const LayerStats& each : layers) seconds += each.seconds;
    chunk_begun_ =
        now - std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  }
  chunk_ended_ = now;
  layer_ = layer;
  add_layers(layers, chunk_.layers);
}

void PromptLog::end_chunk() {
  layer_ = -1;
  if (chunk_.layers.empty()) return;
  Prompt chunk;
  std::swap(chunk, chunk_);
  for (const LayerStats& layer : chunk.layers) {
    chunk.rows = std::max(chunk.rows, layer.served_rows);
    chunk.keys = std::max(chunk.keys, layer.keys);
  }
  if (chunk.keys - chunk.rows < prompt_.keys) {
    end();
  }
  if (prompt_.chunks == 0) begun_ = chunk_begun_;
  ended_ = chunk_ended_;
  if (verbose_ > 1) log_line("chunk of " + prompt_text(chunk));
  ++prompt_.chunks;
  prompt_.rows += chunk.rows;
  prompt_.keys = chunk.keys;
  add_layers(chunk.layers, prompt_.layers);
}

void PromptLog::end() {
  end_chunk();
  if (prompt_.chunks == 0) return;
  Prompt prompt;
  std::swap(prompt, prompt_);
  prompt.seconds = std::chrono::duration<double>(ended_ - begun_).count();
  if (verbose_ > 0) log_line("prompt of " + prompt_text(prompt));
  ledger_.end_prompt(prompt);
}

}  // namespace tsp::ggml_plugin
