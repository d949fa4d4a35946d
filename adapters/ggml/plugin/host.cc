// SPDX-License-Identifier: MIT
#include "adapters/ggml/plugin/host.h"

#include <dlfcn.h>

#include <array>
#include <cstring>
#include <memory>
#include <string_view>

namespace tsp::ggml_plugin {
namespace {

// Minor versions that scripts/plugin-check runs in: structs and enums that we use are equal in
// them.
constexpr std::array<std::string_view, 2> kKnownVersions{"0.25", "0.26"};

void* module_of(const void* address, std::string& name) {
  Dl_info info = {};
  if (dladdr(address, &info) == 0 || info.dli_fname == nullptr) return nullptr;
  name = info.dli_fname;
  void* module = dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  // The program itself goes by another name: null.
  return module != nullptr ? module : dlopen(nullptr, RTLD_NOW);
}

bool equal(const char* a, const char* b) { return a != nullptr && std::strcmp(a, b) == 0; }

}  // namespace

std::string find_host(const void* caller, Host& host) {
  std::string name = "the program";
  void* module = module_of(caller, name);
  if (module == nullptr) return "cannot tell which module loads the plugin";
  std::string missing;
#define TSP_FIND(function)                                                             \
  host.function = reinterpret_cast<decltype(host.function)>(dlsym(module, #function)); \
  if (host.function == nullptr && missing.empty()) missing = #function;
  TSP_GGML_FUNCTIONS(TSP_FIND)
#undef TSP_FIND
  dlclose(module);  // only our count: the module loaded us
  return missing.empty() ? "" : name + " does not export " + missing + "()";
}

bool is_known_version(const std::string& version) {
  for (const std::string_view known : kKnownVersions) {
    if (version.starts_with(std::string(known) + ".")) return true;
  }
  return false;
}

std::string known_versions() {
  std::string list;
  for (const std::string_view known : kKnownVersions) {
    list += (list.empty() ? "" : ", ") + std::string(known) + ".x";
  }
  return list;
}

std::string tensor_layout_fault(const Host& host) {
  // Enums, by their names in the host.
  if (!equal(host.ggml_op_name(GGML_OP_NONE), "NONE") ||
      !equal(host.ggml_op_name(GGML_OP_RESHAPE), "RESHAPE") ||
      !equal(host.ggml_op_name(GGML_OP_VIEW), "VIEW") ||
      !equal(host.ggml_op_name(GGML_OP_PERMUTE), "PERMUTE") ||
      !equal(host.ggml_op_name(GGML_OP_TRANSPOSE), "TRANSPOSE") ||
      !equal(host.ggml_op_name(GGML_OP_MUL_MAT), "MUL_MAT") ||
      !equal(host.ggml_op_name(GGML_OP_SOFT_MAX), "SOFT_MAX") ||
      !equal(host.ggml_op_name(GGML_OP_FLASH_ATTN_EXT), "FLASH_ATTN_EXT")) {
    return "operations are numbered differently";
  }
  if (!equal(host.ggml_type_name(GGML_TYPE_F32), "f32") ||
      !equal(host.ggml_type_name(GGML_TYPE_F16), "f16") ||
      !equal(host.ggml_type_name(GGML_TYPE_BF16), "bf16")) {
    return "types are numbered differently";
  }
  const ggml_type_traits* traits = host.ggml_get_type_traits(GGML_TYPE_Q8_0);
  if (!equal(traits->type_name, "q8_0") || traits->blck_size != 32 || traits->type_size != 34 ||
      !traits->is_quantized || traits->to_float == nullptr) {
    return "the traits of a type have another layout";
  }
  constexpr size_t kObjectBytes = 32;  // ggml_object, in front of each tensor
  if (host.ggml_tensor_overhead() != sizeof(ggml_tensor) + kObjectBytes) {
    return "a tensor has another size";
  }

  const std::unique_ptr<ggml_context, decltype(host.ggml_free)> ctx(
      host.ggml_init({.mem_size = 64 * host.ggml_tensor_overhead() + host.ggml_graph_overhead(),
                      .mem_buffer = nullptr,
                      .no_alloc = true}),
      host.ggml_free);
  if (ctx == nullptr) return "no memory";
  ggml_tensor* q = host.ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F32, 32, 64, 4, 1);
  ggml_tensor* k = host.ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F16, 32, 96, 2, 1);
  ggml_tensor* v = host.ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F16, 32, 96, 2, 1);
  ggml_tensor* mask = host.ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F16, 96, 64, 1, 1);
  ggml_tensor* view = host.ggml_view_tensor(ctx.get(), k);
  host.ggml_set_name(k, "cache_k_l7");
  host.ggml_set_output(q);
  ggml_tensor* node = host.ggml_flash_attn_ext(ctx.get(), q, view, v, mask, 0.25f, 0.5f, 2.0f);
  const auto param = [node](int i) {
    float value;
    std::memcpy(&value, &node->op_params[i], sizeof value);
    return value;
  };
  char data = 0;
  k->data = &data;
  const bool tensors = q->type == GGML_TYPE_F32 && q->op == GGML_OP_NONE && q->ne[0] == 32 &&
                       q->ne[1] == 64 && q->ne[2] == 4 && q->ne[3] == 1 && q->nb[0] == 4 &&
                       q->nb[1] == 128 && q->nb[2] == 8192 && k->nb[0] == 2 &&
                       host.ggml_get_data(k) == &data && host.ggml_get_name(k) == k->name &&
                       (q->flags & GGML_TENSOR_FLAG_OUTPUT) != 0 && view->view_src == k;
  if (!tensors) return "the fields of a tensor are elsewhere";
  // The scale is divided by the soft-cap by who computes the node, not here.
  const bool nodes = node->op == GGML_OP_FLASH_ATTN_EXT && node->src[0] == q &&
                     node->src[1] == view && node->src[2] == v && node->src[3] == mask &&
                     node->src[4] == nullptr && param(0) == 0.25f && param(1) == 0.5f &&
                     param(2) == 2.0f && node->ne[0] == 32 && node->ne[1] == 4 && node->ne[2] == 64;
  if (!nodes) return "an attention node looks different";
  ggml_cgraph* graph = host.ggml_new_graph(ctx.get());
  host.ggml_build_forward_expand(graph, node);
  const int last = host.ggml_graph_n_nodes(graph) - 1;
  if (last < 0 || host.ggml_graph_node(graph, last) != node ||
      (node->flags & GGML_TENSOR_FLAG_COMPUTE) == 0) {
    return "the nodes of a graph are not flagged as expected";
  }
  return "";
}

}  // namespace tsp::ggml_plugin
