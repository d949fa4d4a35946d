// SPDX-License-Identifier: MIT
// The two functions that ggml looks for in a backend it loads. They check what they are loaded into
// before they use any of it; on any doubt the host goes on without us.
#include <cstdlib>
#include <exception>
#include <mutex>
#include <string>

#include "adapters/ggml/plugin/device.h"
#include "adapters/ggml/plugin/host.h"
#include "adapters/ggml/plugin/host_watch.h"
#include "adapters/ggml/plugin/ledger.h"
#include "adapters/ggml/plugin/settings.h"
#include "adapters/ggml/plugin/summary_file.h"
#include "tokensparse/tokensparse.h"

namespace tsp::ggml_plugin {
namespace {

struct Plugin {
  Host host;
  Ledger ledger;
  HostWatch watch;
  ggml_adapter::Setting setting;         // the last one that was asked for
  ggml_backend_reg_t backend = nullptr;  // not null once the host was found to fit
  bool summary = false;
  SummaryHead head;
  std::string summary_file;  // empty: none asked for, or it cannot be written
  std::mutex file_mutex;
};

/// Never destroyed: contexts of the host may outlive the destructors of this library.
Plugin& plugin() {
  static Plugin& instance = *new Plugin;
  return instance;
}

bool refuse(const std::string& why) {
  log_line(why + "; attention is left to ggml");
  return false;
}

/// The name of the CPU path; empty when the library cannot run here, as tsp_last_error() says.
std::string cpu_path() {
  tsp_context_options_t options;
  tsp_context_options_init(&options, sizeof options);
  options.num_threads = 1;
  tsp_context_t* ctx = nullptr;
  if (tsp_context_create(&options, &ctx) != TSP_OK) return "";
  const std::string isa = tsp_context_isa(ctx);
  tsp_context_destroy(ctx);
  return isa;
}

std::string summary() {
  const Plugin& self = plugin();
  return summary_text(self.ledger.totals(), self.setting, self.watch.why_nothing());
}

void write_summary() {
  Plugin& self = plugin();
  const std::lock_guard lock(self.file_mutex);
  if (self.summary_file.empty()) return;
  const std::string json =
      summary_json(self.head, self.ledger.totals(), self.setting, self.watch.why_nothing());
  const std::string fault = write_whole_file(self.summary_file, json);
  if (fault.empty()) return;
  log_line("TOKENSPARSE_SUMMARY: " + fault);
  self.summary_file.clear();
}

/// Nothing where no context was made: the host printed its help, or failed.
void print_summary() {
  if (plugin().watch.contexts() == 0) return;
  write_summary();
  if (plugin().summary) log_line(summary());
}

/// Whether the module that `caller` lies in can be served; also when it is served already.
bool start(const void* caller) {
  Plugin& self = plugin();
  Host host;
  const std::string missing = find_host(caller, host);
  if (!missing.empty()) return refuse("this is no ggml that the plugin knows: " + missing);
  ggml_backend_reg_t loaded = host.ggml_backend_reg_by_name(kBackendName);
  if (loaded != nullptr && loaded == self.backend) return true;
  if (loaded != nullptr) return refuse("another copy of the plugin is loaded already");
  if (self.backend != nullptr && host.ggml_version != self.host.ggml_version) {
    return refuse("the plugin serves another ggml of this process already");
  }
  const std::string version = host.ggml_version();
  if (!is_known_version(version)) {
    return refuse("ggml " + version + " is not one that the plugin was compared with (" +
                  known_versions() + ")");
  }
  std::string fault = tensor_layout_fault(host);
  if (fault.empty()) fault = backend_layout_fault(host);
  if (!fault.empty()) {
    return refuse("ggml " + version + " differs from what the plugin was built for: " + fault);
  }
  const std::string isa = cpu_path();
  if (isa.empty()) return refuse(tsp_last_error());

  Settings settings = read_settings(std::getenv, environment_names());
  for (const std::string& warning : settings.warnings) log_line(warning);
  if (settings.disabled) return refuse("disabled by the user");
  if (self.backend == nullptr) self.host = host;
  self.ledger.clear();
  self.watch.clear();
  self.backend = make_backend(self.host, settings, self.ledger, self.watch);
  self.setting = settings.setting;
  self.summary = settings.summary;
  self.head = {.ggml = version, .isa = isa, .settings = describe(settings)};
  self.summary_file = settings.summary_file;
  self.ledger.on_prompt = write_summary;
  write_summary();  // says at once where it cannot
  log_line(std::string(tsp_version()) + " in ggml " + version + ", " + isa + ": " +
           self.head.settings);
  return true;
}

/// Nothing is thrown into the host.
bool start_safely(const void* caller) {
  try {
    return start(caller);
  } catch (const std::exception& error) {
    return refuse(error.what());
  }
}

}  // namespace
}  // namespace tsp::ggml_plugin

extern "C" {

/// 0 tells ggml to unload us again without a fuss.
TSP_API int ggml_backend_score() {
  return tsp::ggml_plugin::start_safely(__builtin_return_address(0)) ? 100 : 0;
}

TSP_API ggml_backend_reg_t ggml_backend_init() {
  // ggml asks for the score first; a host that does not gets the same checks here.
  if (tsp::ggml_plugin::plugin().backend == nullptr &&
      !tsp::ggml_plugin::start_safely(__builtin_return_address(0))) {
    return nullptr;
  }
  return tsp::ggml_plugin::plugin().backend;
}

/// The summary so far. The text stays valid until the next call on the same thread.
TSP_API const char* tokensparse_plugin_summary() {
  thread_local std::string text;
  text = tsp::ggml_plugin::summary();
  return text.c_str();
}

}  // extern "C"

namespace {
const struct AtExit {
  ~AtExit() { tsp::ggml_plugin::print_summary(); }
} at_exit;
}  // namespace
