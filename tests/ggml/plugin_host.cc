// SPDX-License-Identifier: MIT
#include "tests/ggml/plugin_host.h"

#include <dlfcn.h>

#include <cmath>
#include <cstdio>

#include "adapters/ggml/plugin/host.h"

namespace tsp::test {
namespace {

// Of a static ggml only what is named gets into a program.
#define TSP_NAME(function) reinterpret_cast<const void*>(&::function),
[[gnu::used]] const void* const kExported[] = {TSP_GGML_FUNCTIONS(TSP_NAME)};
#undef TSP_NAME

}  // namespace

LoadedPlugin::LoadedPlugin(const Variables& variables) : variables_(variables) {
  variables_.insert({"TOKENSPARSE_VERIFY", "1"});
  for (const auto& [name, value] : variables_) ::setenv(name.c_str(), value.c_str(), 1);
  backend_ = ggml_backend_load(TSP_PLUGIN);
}

LoadedPlugin::~LoadedPlugin() {
  unload();
  for (const auto& [name, value] : variables_) ::unsetenv(name.c_str());
}

void LoadedPlugin::unload() {
  if (backend_ != nullptr) ggml_backend_unload(backend_);
  backend_ = nullptr;
}

std::string LoadedPlugin::summary() const {
  void* library = dlopen(TSP_PLUGIN, RTLD_NOW | RTLD_LOCAL);
  const auto function =
      reinterpret_cast<const char* (*)()>(dlsym(library, "tokensparse_plugin_summary"));
  const std::string text = function != nullptr ? function() : "";
  dlclose(library);
  return text;
}

int64_t LoadedPlugin::served() const {
  long long served = -1;
  std::sscanf(summary().c_str(), "served %lld attention nodes", &served);
  return served;
}

int64_t LoadedPlugin::sparse() const {
  const std::string text = summary();
  const size_t at = text.find(" of them sparse");
  if (at == std::string::npos) return 0;
  return std::stoll(text.substr(text.rfind(' ', at - 1)));
}

int64_t LoadedPlugin::linear() const {
  const std::string text = summary();
  const size_t at = text.find(" linear layers");
  if (at == std::string::npos) return 0;
  return std::stoll(text.substr(text.rfind(' ', at - 1)));
}

double LoadedPlugin::largest_difference() const {
  const std::string text = summary(), words = "largest difference ";
  const size_t at = text.find(words);
  return at == std::string::npos ? INFINITY : std::stod(text.substr(at + words.size()));
}

std::string LoadedPlugin::left_to_ggml() const {
  const std::string text = summary(), words = "left to ggml: ";
  const size_t at = text.find(words);
  return at == std::string::npos ? "?" : text.substr(at + words.size());
}

}  // namespace tsp::test
