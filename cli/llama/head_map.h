// SPDX-License-Identifier: MIT
// Which heads of a draft choose tokens for each KV head of a target: the file that `python -m lab
// head-map` and tokensparse.methods.sts write, "tokensparse head map 1".
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "adapters/ggml/setting.h"

namespace tsp::cli {

struct HeadMap {
  struct Head {
    int32_t layer = 0, head = 0;  // query head
  };
  std::string path;
  ggml_adapter::ModelNumbers target, draft;
  std::vector<std::vector<std::vector<Head>>> heads;  // [target layer][KV head], one or more each

  /// Throws Failure, which names file, key and rule.
  explicit HeadMap(const std::string& path);
  /// Throws Failure where it was made for other models.
  void check(const ggml_adapter::ModelNumbers& target_numbers,
             const ggml_adapter::ModelNumbers& draft_numbers) const;
};

}  // namespace tsp::cli
