// SPDX-License-Identifier: MIT
// The plugin as ggml sees it: a backend "tokensparse" with one ACCEL device that takes attention
// nodes of prefill size.
#pragma once

#include <string>

#include "adapters/ggml/plugin/host.h"
#include "adapters/ggml/plugin/host_watch.h"
#include "adapters/ggml/plugin/ledger.h"
#include "adapters/ggml/plugin/settings.h"

namespace tsp::ggml_plugin {

inline constexpr const char* kBackendName = "tokensparse";

/// Empty, or how the host's backend structs differ from those of the header that this plugin was
/// built with. Looks at the host's CPU backend through that header and through public functions.
std::string backend_layout_fault(const Host& host);

/// The backend for ggml's registry. Contexts made from now on use these settings; `host`, `ledger`
/// and `watch` outlive every context. An engine for linear layers that is not to be had is taken
/// out of the settings, and said.
ggml_backend_reg_t make_backend(const Host& host, Settings& settings, Ledger& ledger,
                                HostWatch& watch);

}  // namespace tsp::ggml_plugin
