// SPDX-License-Identifier: MIT
// The one file that sees ggml's internal header. Everything in it that depends on the layout of
// those structs is checked by backend_layout_fault() before it is used.
#include "adapters/ggml/plugin/device.h"

#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "adapters/ggml/plugin/node_runner.h"
#include "ggml-backend-impl.h"

namespace tsp::ggml_plugin {
namespace {

using ggml_adapter::Refusal;

constexpr int64_t kAwaited = -1, kKnown = 0;
constexpr int64_t kMostSequences = 256;  // of a llama.cpp context

/// One a load: contexts that outlive an unloading keep what they were made with.
struct Device {
  ggml_backend_device device{};
  const Host* host = nullptr;
  Settings settings;
  Ledger* ledger = nullptr;
  ggml_adapter::LinearOptions linear_options;
  bool linear = false;
  std::mutex told_mutex;
  std::set<std::string> told;
  // llama.cpp's `-fa auto` first places a graph of one token a sequence and switches flash
  // attention off when a node of it is not on the CPU. So the first row count that is asked about
  // after a context is born is the host's, where it could be that; until another one comes.
  std::atomic<int64_t> first_rows{kKnown};
  HostWatch* watch = nullptr;
  // By the thread that computed with each last: what this thread asks for next ends its prompt.
  std::mutex running_mutex;
  std::map<std::thread::id, NodeRunner*> running;
};

struct Backend {
  std::unique_ptr<NodeRunner> runner;
  int64_t context = 0;  // its number at the watch
  bool remarked = false;
  ggml_abort_callback abort = nullptr;
  void* abort_data = nullptr;
};

Device& device_of(ggml_backend_dev_t dev) { return *static_cast<Device*>(dev->context); }
Backend& backend_of(ggml_backend_t backend) { return *static_cast<Backend*>(backend->context); }

/// However many contexts it is true of.
void tell_once(Device& device, const std::string& line) {
  const std::lock_guard lock(device.told_mutex);
  if (device.told.insert(line).second) log_line(line);
}

// ---- backend ----

const char* backend_name(ggml_backend_t) { return kBackendName; }

void backend_free(ggml_backend_t backend) {
  Device& device = device_of(backend->device);
  {
    const std::lock_guard lock(device.running_mutex);
    std::erase_if(device.running, [&](const auto& entry) {
      return entry.second == backend_of(backend).runner.get();
    });
  }
  device.watch->freed_context(backend_of(backend).context);
  delete &backend_of(backend);
  delete backend;
}

ggml_status backend_compute(ggml_backend_t self, ggml_cgraph* graph) {
  Backend& backend = backend_of(self);
  Device& device = device_of(self->device);
  const Host& host = *device.host;
  if (!std::exchange(backend.remarked, true)) {  // the whole graph has been asked about by now
    for (const std::string& remark : device.watch->remarks(device.settings.setting)) {
      tell_once(device, remark);
    }
  }
  backend.runner->set_num_layers(device.watch->num_layers(backend.context));
  {
    const std::lock_guard lock(device.running_mutex);
    device.running[std::this_thread::get_id()] = backend.runner.get();
  }
  backend.runner->begin_piece();
  const int count = host.ggml_graph_n_nodes(graph);
  for (int i = 0; i < count; ++i) {
    ggml_tensor* node = host.ggml_graph_node(graph, i);
    // The others are views, which need no work.
    if (node->op != GGML_OP_FLASH_ATTN_EXT && node->op != GGML_OP_MUL_MAT) continue;
    if ((node->flags & GGML_TENSOR_FLAG_COMPUTE) == 0) continue;
    if (backend.abort != nullptr && backend.abort(backend.abort_data)) return GGML_STATUS_ABORTED;
    if (!backend.runner->compute(*node)) return GGML_STATUS_FAILED;
  }
  return GGML_STATUS_SUCCESS;
}

void set_n_threads(ggml_backend_t backend, int n_threads) {
  backend_of(backend).runner->set_threads(n_threads);
}

void set_abort_callback(ggml_backend_t backend, ggml_abort_callback abort, void* data) {
  backend_of(backend).abort = abort;
  backend_of(backend).abort_data = data;
}

// ---- device ----

const char* device_name(ggml_backend_dev_t) { return kBackendName; }
const char* device_description(ggml_backend_dev_t) { return "token sparse attention for prefill"; }
void device_memory(ggml_backend_dev_t, size_t* free, size_t* total) { *free = *total = 0; }
enum ggml_backend_dev_type device_type(ggml_backend_dev_t) {
  return GGML_BACKEND_DEVICE_TYPE_ACCEL;
}

void device_props(ggml_backend_dev_t dev, ggml_backend_dev_props* props) {
  // Field by field: a later version's struct may be longer than ours.
  props->name = device_name(dev);
  props->description = device_description(dev);
  props->memory_free = props->memory_total = 0;
  props->type = device_type(dev);
  props->device_id = nullptr;
  props->caps.async = false;
  props->caps.host_buffer = false;
  props->caps.buffer_from_host_ptr = true;
  props->caps.events = false;
  props->caps.mmap_support = true;
}

ggml_backend_t device_init(ggml_backend_dev_t dev, const char*) {
  static ggml_guid guid = {0x74, 0x6f, 0x6b, 0x65, 0x6e, 0x73, 0x70, 0x61,
                           0x72, 0x73, 0x65, 0x2d, 0x61, 0x63, 0x63, 0x6c};
  Device& device = device_of(dev);
  std::string why;
  auto runner = NodeRunner::create(*device.host, device.settings, *device.ledger, why);
  if (runner == nullptr) {
    log_line("cannot start: " + why);
    return nullptr;
  }
  device.first_rows = kAwaited;
  const int64_t context = device.watch->made_context();
  auto backend = std::make_unique<ggml_backend>();
  backend->guid = &guid;
  backend->iface.get_name = backend_name;
  backend->iface.free = backend_free;
  backend->iface.graph_compute = backend_compute;
  backend->device = dev;
  backend->context = new Backend{.runner = std::move(runner), .context = context};
  return backend.release();
}

ggml_backend_buffer_type_t device_buffer_type(ggml_backend_dev_t dev) {
  return device_of(dev).host->ggml_backend_cpu_buffer_type();
}

ggml_backend_buffer_t device_buffer(ggml_backend_dev_t dev, void* data, size_t size, size_t) {
  return device_of(dev).host->ggml_backend_cpu_buffer_from_ptr(data, size);
}

bool may_be_probe(Device& device, int64_t rows) {
  int64_t first = device.first_rows;
  if (first == kAwaited) device.first_rows = first = rows <= kMostSequences ? rows : kKnown;
  if (first == rows) return true;
  device.first_rows = kKnown;
  return false;
}

bool serves_linear(Device& device, const ggml_tensor& op) {
  using ggml_adapter::LinearRefusal;
  const LinearRefusal refusal = ggml_adapter::refusal_of_shape(op, device.linear_options);
  if (refusal == LinearRefusal::kRepacked) {
    tell_once(device,
              "some linear layers are left to ggml, which repacked their weights; start the host "
              "with --no-repack");
  }
  return refusal == LinearRefusal::kNone;
}

/// Decoding ends a prompt: its nodes are not ours, but the host asks.
void end_prompt_of_this_thread(Device& device) {
  const std::lock_guard lock(device.running_mutex);
  const auto found = device.running.find(std::this_thread::get_id());
  if (found != device.running.end()) found->second->end_prompt();
}

void tell_where_flash_attention_is_off(Device& device) {
  const std::string why = device.watch->why_nothing();
  if (!why.empty()) tell_once(device, "attention is left to ggml: " + why);
}

bool device_supports_op(ggml_backend_dev_t dev, const ggml_tensor* op) {
  Device& device = device_of(dev);
  device.watch->asked(*op);
  if (op->op == GGML_OP_SOFT_MAX) tell_where_flash_attention_is_off(device);
  if (op->op == GGML_OP_FLASH_ATTN_EXT && op->src[0]->ne[1] < device.settings.serve_rows) {
    end_prompt_of_this_thread(device);
  }
  switch (op->op) {
    case GGML_OP_NONE:
    case GGML_OP_RESHAPE:
    case GGML_OP_VIEW:
    case GGML_OP_PERMUTE:
    case GGML_OP_TRANSPOSE:
      return true;
    case GGML_OP_FLASH_ATTN_EXT:
      return !may_be_probe(device, op->src[0]->ne[1]) &&
             ggml_adapter::refusal_of_shape(*op, device.settings.serve_rows,
                                            device.host->ggml_get_type_traits) == Refusal::kNone;
    case GGML_OP_MUL_MAT:
      return device.linear && serves_linear(device, *op);
    default:
      return false;
  }
}

bool device_supports_buffer(ggml_backend_dev_t dev, ggml_backend_buffer_type_t type) {
  return device_of(dev).host->ggml_backend_buft_is_host(type);
}

// ---- registry ----

ggml_backend_reg the_reg;

const char* reg_name(ggml_backend_reg_t) { return kBackendName; }
size_t reg_device_count(ggml_backend_reg_t) { return 1; }
ggml_backend_dev_t reg_device(ggml_backend_reg_t reg, size_t) {
  return &static_cast<Device*>(reg->context)->device;
}

void* reg_function(ggml_backend_reg_t, const char* name) {
  if (std::strcmp(name, "ggml_backend_set_n_threads") == 0) {
    return reinterpret_cast<void*>(set_n_threads);
  }
  if (std::strcmp(name, "ggml_backend_set_abort_callback") == 0) {
    return reinterpret_cast<void*>(set_abort_callback);
  }
  return nullptr;
}

}  // namespace

ggml_backend_reg_t make_backend(const Host& host, Settings& settings, Ledger& ledger,
                                HostWatch& watch) {
  static std::vector<std::unique_ptr<Device>> devices;
  Device& device = *devices.emplace_back(std::make_unique<Device>());
  device.host = &host;
  device.ledger = &ledger;
  device.watch = &watch;
  device.linear_options = linear_options(settings, host);
  if (settings.linear != Settings::kGgml) {
    std::string why;
    device.linear = ggml_adapter::LinearServer::create(device.linear_options, why) != nullptr;
    if (!device.linear) {
      log_line("linear layers are left to ggml: " + why);
      settings.linear = Settings::kGgml;
    }
  }
  device.settings = settings;

  ggml_backend_dev_t cpu = host.ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  the_reg.api_version = cpu->reg->api_version;
  the_reg.iface = {};
  the_reg.iface.get_name = reg_name;
  the_reg.iface.get_device_count = reg_device_count;
  the_reg.iface.get_device = reg_device;
  the_reg.iface.get_proc_address = reg_function;
  the_reg.context = &device;
  ggml_backend_device_i& iface = device.device.iface;
  iface.get_name = device_name;
  iface.get_description = device_description;
  iface.get_memory = device_memory;
  iface.get_type = device_type;
  iface.get_props = device_props;
  iface.init_backend = device_init;
  iface.get_buffer_type = device_buffer_type;
  iface.buffer_from_host_ptr = device_buffer;
  iface.supports_op = device_supports_op;
  iface.supports_buft = device_supports_buffer;
  device.device.reg = &the_reg;
  device.device.context = &device;
  return &the_reg;
}

std::string backend_layout_fault(const Host& host) {
  ggml_backend_dev_t cpu = host.ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  if (cpu == nullptr) return "there is no CPU backend";
  // Where `reg` lies says how long the table of device functions before it is; and so on. Which
  // entries the CPU backend leaves empty says that none moved in between.
  const ggml_backend_device_i& d = cpu->iface;
  const bool device = cpu->reg == host.ggml_backend_dev_backend_reg(cpu) && d.get_name != nullptr &&
                      d.get_type != nullptr && d.get_props != nullptr &&
                      d.init_backend != nullptr && d.get_buffer_type != nullptr &&
                      d.get_host_buffer_type == nullptr && d.buffer_from_host_ptr != nullptr &&
                      d.supports_op != nullptr && d.supports_buft != nullptr &&
                      d.offload_op == nullptr && d.event_new == nullptr &&
                      d.event_free == nullptr && d.event_synchronize == nullptr;
  if (!device) return "the device struct differs";
  const int version = cpu->reg->api_version;
  if (version != 2 && version != 3) return "backend API version " + std::to_string(version);
  const auto* function = reinterpret_cast<const void*>(cpu->reg->iface.get_proc_address);
  if (function == nullptr || cpu->reg->iface.get_device == nullptr) {
    return "the registry struct differs";
  }
  ggml_backend_t backend = host.ggml_backend_dev_init(cpu, nullptr);
  if (backend == nullptr) return "the CPU backend does not start";
  const ggml_backend_i& b = backend->iface;
  const bool same =
      backend->device == host.ggml_backend_get_device(backend) && backend->device == cpu &&
      backend->guid == host.ggml_backend_guid(backend) && b.get_name != nullptr &&
      b.free != nullptr && b.set_tensor_async == nullptr && b.get_tensor_async == nullptr &&
      b.set_tensor_2d_async == nullptr && b.get_tensor_2d_async == nullptr &&
      b.cpy_tensor_async == nullptr && b.synchronize == nullptr && b.graph_plan_create != nullptr &&
      b.graph_plan_free != nullptr && b.graph_plan_update == nullptr &&
      b.graph_plan_compute != nullptr && b.graph_compute != nullptr && b.event_record == nullptr &&
      b.event_wait == nullptr && b.graph_optimize == nullptr;
  host.ggml_backend_free(backend);
  return same ? "" : "the backend struct differs";
}

}  // namespace tsp::ggml_plugin
