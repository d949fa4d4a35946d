// SPDX-License-Identifier: MIT
// A program with ggml in it that loads the plugin, as llama.cpp's programs do.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <string>

#include "ggml-backend.h"
#include "tests/ggml/engine.h"
#include "tests/ggml/tiny_model.h"
#include "tests/support/temporary_folder.h"

namespace tsp::test {

/// A file of a tiny model for the life of the object.
class ModelFile {
 public:
  explicit ModelFile(const TinyModel& model) { write_tiny_model(model, path_); }
  const std::string& path() const { return path_; }

 private:
  const TemporaryFolder folder_;
  const std::string path_ = (folder_.path() / "model.gguf").string();
};

/// The plugin, loaded with some environment and unloaded again.
class LoadedPlugin {
 public:
  using Variables = std::map<std::string, std::string>;
  /// Every node it serves is compared with ggml's own result, whatever `variables` says.
  explicit LoadedPlugin(const Variables& variables = {});
  ~LoadedPlugin();
  LoadedPlugin(const LoadedPlugin&) = delete;
  LoadedPlugin& operator=(const LoadedPlugin&) = delete;

  ggml_backend_reg_t backend() const { return backend_; }  // null: it refused
  void unload();

  /// What the user is told at exit ...
  std::string summary() const;
  /// ... and numbers of it.
  int64_t served() const;
  int64_t sparse() const;
  int64_t linear() const;
  /// Relative RMS between a node and ggml's own result; infinity when nothing was compared.
  double largest_difference() const;
  /// What it says after "left to ggml: ".
  std::string left_to_ggml() const;

 private:
  Variables variables_;
  ggml_backend_reg_t backend_ = nullptr;
};

}  // namespace tsp::test
