// SPDX-License-Identifier: MIT
// The ggml that loaded the plugin. Its functions are looked up in the module that called
// ggml_backend_init(): the plugin has no undefined ggml symbols, so it loads under RTLD_LOCAL, into
// programs that link ggml statically and export it, and beside a second ggml in one process.
#pragma once

#include <string>

#include "ggml-backend.h"
#include "ggml.h"

// Every ggml function that the plugin calls; all of them are public API.
#define TSP_GGML_FUNCTIONS(X)          \
  X(ggml_backend_buft_is_host)         \
  X(ggml_backend_cpu_buffer_from_ptr)  \
  X(ggml_backend_cpu_buffer_type)      \
  X(ggml_backend_dev_backend_reg)      \
  X(ggml_backend_dev_by_type)          \
  X(ggml_backend_dev_init)             \
  X(ggml_backend_free)                 \
  X(ggml_backend_get_device)           \
  X(ggml_backend_graph_compute)        \
  X(ggml_backend_guid)                 \
  X(ggml_backend_reg_by_name)          \
  X(ggml_backend_reg_get_proc_address) \
  X(ggml_build_forward_expand)         \
  X(ggml_custom_4d)                    \
  X(ggml_flash_attn_ext)               \
  X(ggml_free)                         \
  X(ggml_get_data)                     \
  X(ggml_get_name)                     \
  X(ggml_get_type_traits)              \
  X(ggml_graph_add_node)               \
  X(ggml_graph_clear)                  \
  X(ggml_graph_n_nodes)                \
  X(ggml_graph_node)                   \
  X(ggml_graph_overhead)               \
  X(ggml_init)                         \
  X(ggml_nbytes)                       \
  X(ggml_new_graph)                    \
  X(ggml_new_tensor_4d)                \
  X(ggml_op_name)                      \
  X(ggml_set_name)                     \
  X(ggml_set_output)                   \
  X(ggml_tensor_overhead)              \
  X(ggml_type_name)                    \
  X(ggml_version)                      \
  X(ggml_view_tensor)

namespace tsp::ggml_plugin {

struct Host {
#define TSP_DECLARE(function) decltype(&::function) function = nullptr;
  TSP_GGML_FUNCTIONS(TSP_DECLARE)
#undef TSP_DECLARE
};

/// Looks every function up in the module that `caller`, an address in its code, lies in. Empty, or
/// what is missing.
std::string find_host(const void* caller, Host& host);

/// Whether this plugin was compared with that version of ggml: "0.25.3" goes by its "0.25".
bool is_known_version(const std::string& version);
std::string known_versions();

/// Empty, or how the host's tensors and nodes differ from those this plugin was built for. Makes a
/// few with the host's functions and reads them with our header.
std::string tensor_layout_fault(const Host& host);

}  // namespace tsp::ggml_plugin
