// SPDX-License-Identifier: MIT
// `tokensparse info`: what this build and this machine can do.
#include <dlfcn.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/gpu.h"
#include "cli/options.h"
#include "cli/verbs.h"

namespace tsp::cli {
namespace {

std::vector<std::string> words(const char* text) {
  std::istringstream stream(text);
  std::vector<std::string> list;
  for (std::string word; stream >> word;) list.push_back(word);
  return list;
}

/// The llama.cpp plugin of this build or installation: beside the library, or in lib beside bin.
std::string plugin_path() {
  namespace fs = std::filesystem;
  std::vector<fs::path> folders;
  Dl_info library = {};
  if (dladdr(reinterpret_cast<const void*>(&tsp_version), &library) != 0) {
    folders.push_back(fs::path(library.dli_fname).parent_path());
  }
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  if (!error) folders.push_back(program.parent_path().parent_path() / "lib");
  for (const fs::path& folder : folders) {
    const fs::path plugin = fs::absolute(folder / "libggml-tokensparse.so", error);
    if (!error && fs::exists(plugin, error)) return plugin.lexically_normal();
  }
  return "";
}

nlohmann::json gpus_json() {
  nlohmann::json list = nlohmann::json::array();
  for (const Gpu& gpu : list_gpus()) {
    list.push_back(
        {{"name", gpu.name},
         {"memory_bytes", gpu.memory_bytes},
         {"compute_capability", std::to_string(gpu.major) + "." + std::to_string(gpu.minor)},
         {"driver", gpu.driver}});
  }
  return list;
}

void print_info(bool json) {
  const tokensparse::Context cpu = open_context({});
  tokensparse::ContextOptions options;
  options.backend = TSP_BACKEND_CUDA;
  tokensparse::Context gpu;
  const tokensparse::Status gpu_status = tokensparse::Context::create(options, &gpu);
  const bool has_gpu = gpu_status.ok();
  const std::string cuda = has_gpu ? gpu.isa() : gpu_status.message();
  const char* const llama = llama_description();
  const std::string plugin = plugin_path();

  if (json) {
    const nlohmann::json info = {
        {"version", tsp_version()},
        {"abi_version", tsp_abi_version()},
        {"cpu", {{"isa", cpu.isa()}, {"isas", words(tsp_cpu_isas())}, {"threads", cpu.threads()}}},
        {"cuda", has_gpu ? nlohmann::json(cuda) : nlohmann::json(nullptr)},
        {"gpus", gpus_json()},
        {"llama_cpp", llama != nullptr ? nlohmann::json(llama) : nlohmann::json(nullptr)},
        {"plugin", plugin.empty() ? nlohmann::json(nullptr) : nlohmann::json(plugin)}};
    std::printf("%s\n", info.dump(2).c_str());
    return;
  }
  std::printf("tokensparse  %s, C ABI %u\n", tsp_version(), tsp_abi_version());
  std::printf("cpu          %s, %d thread%s (this machine can run: %s)\n", cpu.isa().c_str(),
              cpu.threads(), cpu.threads() == 1 ? "" : "s", tsp_cpu_isas());
  std::printf("cuda         %s%s\n", has_gpu ? "" : "no: ", cuda.c_str());
  for (const Gpu& card : list_gpus()) {
    std::printf("gpu          %s, %.1f GiB, compute capability %d.%d, driver %s\n",
                card.name.c_str(), static_cast<double>(card.memory_bytes) / (1 << 30), card.major,
                card.minor, card.driver.c_str());
  }
  std::printf("llama.cpp    %s\n",
              llama != nullptr ? llama : "not in this build: `run` and `profile` need it");
  if (!plugin.empty()) std::printf("plugin       export GGML_BACKEND_PATH=%s\n", plugin.c_str());
}

}  // namespace

void add_info(CLI::App& app) {
  CLI::App* verb = app.add_subcommand("info", "What this build and this machine can do");
  const auto json = std::make_shared<bool>(false);
  verb->add_flag("--json", *json, "Print JSON");
  verb->callback([json] { print_info(*json); });
}

void add_plugin_path(CLI::App& app) {
  CLI::App* verb = app.add_subcommand("plugin-path", "Where the plugin for llama.cpp is");
  verb->callback([] {
    const std::string plugin = plugin_path();
    if (plugin.empty()) throw Failure("no libggml-tokensparse.so came with this program");
    std::printf("%s\n", plugin.c_str());
  });
}

}  // namespace tsp::cli
