// SPDX-License-Identifier: MIT
#include "arguments.h"

#include <bit>
#include <cstring>
#include <mutex>
#include <stdexcept>

namespace tsp_torch {

Shim g_shim;
HostOptions g_host;

void fail(const std::string& message) { throw std::runtime_error(message); }

void check(int32_t error, const char* what) {
  if (error != 0) fail(std::string("tokensparse: torch could not give ") + what);
}

void* Tensor::data() const {
  void* data = nullptr;
  check(g_shim.data_ptr(handle_, &data), "the data of a tensor");
  return data;
}

int64_t Tensor::size(int axis) const {
  int64_t* sizes = nullptr;
  check(g_shim.sizes(handle_, &sizes), "the shape of a tensor");
  return sizes[axis];
}

int64_t Tensor::stride(int axis) const {
  int64_t* strides = nullptr;
  check(g_shim.strides(handle_, &strides), "the strides of a tensor");
  return strides[axis];
}

Device device_of(const Tensor& tensor) {
  Device device;
  check(g_shim.device_type(tensor.get(), &device.type), "the device of a tensor");
  check(g_shim.device_index(tensor.get(), &device.index), "the device of a tensor");
  if (device.type == g_shim.cpu) device.index = 0;
  return device;
}

Tensor empty(std::initializer_list<int64_t> sizes, int32_t dtype, const Device& device) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t axis = sizes.size() - 1; axis > 0; --axis) {
    strides[axis - 1] = strides[axis] * sizes.begin()[axis];
  }
  TensorHandle handle = nullptr;
  check(g_shim.empty_strided(static_cast<int64_t>(sizes.size()), sizes.begin(), strides.data(),
                             dtype, device.type, device.index, &handle),
        "memory for a result");
  return Tensor(handle);
}

Arguments::~Arguments() {
  for (StringHandle string : strings_) g_shim.delete_string(string);
}

const Tensor& Arguments::tensor() {
  tensors_.reserve(count_);
  tensors_.emplace_back(reinterpret_cast<TensorHandle>(stack_[next_++]));
  return tensors_.back();
}

double Arguments::real() { return std::bit_cast<double>(stack_[next_++]); }

int64_t Arguments::integer() { return std::bit_cast<int64_t>(stack_[next_++]); }

const char* Arguments::text() {
  strings_.push_back(reinterpret_cast<StringHandle>(stack_[next_++]));
  const char* text = nullptr;
  check(g_shim.string_c_str(strings_.back(), &text), "a string");
  return text;
}

int32_t Arguments::choice(const char* argument, std::initializer_list<const char*> names) {
  const char* const text = this->text();
  std::string known;
  int32_t place = 0;
  for (const char* name : names) {
    if (std::strcmp(name, text) == 0) return place;
    known += (place++ == 0 ? "" : ", ") + std::string(name);
  }
  fail(std::string(argument) + ": must be one of " + known + ", is '" + text + "'");
}

namespace {

std::string name_of(const Device& device) {
  if (device.type == g_shim.cpu) return "cpu";
  return (device.type == g_shim.cuda ? "cuda:" : "another device, ") + std::to_string(device.index);
}

void check_place(const Tensor& tensor, const char* name, const Device& device) {
  const Device found = device_of(tensor);
  if (found != device) {
    fail(std::string(name) + ": must be on " + name_of(device) + " like the first tensor, is on " +
         name_of(found));
  }
  int32_t layout = 0;
  check(g_shim.layout(tensor.get(), &layout), "the layout of a tensor");
  if (layout != g_shim.strided) fail(std::string(name) + ": must be a dense tensor");
}

void check_dims(const Tensor& tensor, const char* name, const char* axes, int64_t wanted) {
  int64_t dims = 0;
  check(g_shim.dim(tensor.get(), &dims), "the shape of a tensor");
  if (dims != wanted) {
    fail(std::string(name) + ": must have " + std::to_string(wanted) + " dimensions " + axes +
         ", has " + std::to_string(dims));
  }
}

int32_t dtype_of(const Tensor& tensor) {
  int32_t dtype = 0;
  check(g_shim.dtype(tensor.get(), &dtype), "the dtype of a tensor");
  return dtype;
}

}  // namespace

int32_t int32(int64_t value, const char* argument) {
  if (value < INT32_MIN || value > INT32_MAX) {
    fail(std::string(argument) + ": must fit in 32 bits, is " + std::to_string(value));
  }
  return static_cast<int32_t>(value);
}

int32_t torch_dtype(int32_t dtype) {
  if (dtype == TSP_F32) return g_shim.f32;
  return dtype == TSP_F16 ? g_shim.f16 : g_shim.bf16;
}

tsp_tensor_t view(const Tensor& tensor, const char* name, const Device& device, int dims) {
  check_place(tensor, name, device);
  check_dims(tensor, name, dims == 3 ? "[tokens, heads, dim]" : "[tokens, heads]", dims);
  const int32_t dtype = dtype_of(tensor);
  tsp_tensor_t seen{};
  if (dtype == g_shim.f32) {
    seen.dtype = TSP_F32;
  } else if (dtype == g_shim.f16) {
    seen.dtype = TSP_F16;
  } else if (dtype == g_shim.bf16) {
    seen.dtype = TSP_BF16;
  } else {
    fail(std::string(name) + ": dtype must be float32, float16 or bfloat16");
  }
  seen.data = tensor.data();
  seen.tokens = tensor.size(0);
  seen.heads = tensor.size(1);
  seen.dim = dims == 3 ? tensor.size(2) : 1;
  seen.token_stride = tensor.stride(0);
  seen.head_stride = tensor.stride(1);
  seen.dim_stride = dims == 3 ? tensor.stride(2) : 1;
  return seen;
}

tsp_index_sets_t sets(const Tensor& indices, const Tensor& kept, const Device& device) {
  check_place(indices, "indices", device);
  check_place(kept, "kept", device);
  check_dims(indices, "indices", "[1, S, L]", 3);
  check_dims(kept, "kept", "[1]", 1);
  if (dtype_of(indices) != g_shim.int32) fail("indices: dtype must be int32");
  if (dtype_of(kept) != g_shim.int32) fail("kept: dtype must be int32");
  if (indices.size(0) != 1 || kept.size(0) != 1) {
    fail("indices, kept: must be of one sequence, are of " + std::to_string(indices.size(0)) +
         " and " + std::to_string(kept.size(0)));
  }
  if (indices.size(2) > 1 && indices.stride(2) != 1) {
    fail("indices: the last axis must be contiguous, its stride is " +
         std::to_string(indices.stride(2)));
  }
  tsp_index_sets_t seen{};
  seen.indices = static_cast<int32_t*>(indices.data());
  seen.kept = static_cast<int32_t*>(kept.data());
  seen.num_sets = static_cast<int32_t>(indices.size(1));
  seen.set_stride = indices.stride(1);
  seen.seq_stride = indices.stride(0);
  return seen;
}

void on_torchs_threads(void* /*user*/, int32_t num_threads, void (*fn)(void* arg, int32_t i),
                       void* arg) {
  struct Task {
    void (*fn)(void*, int32_t);
    void* arg;
  } task{fn, arg};
  g_shim.parallel_for(
      0, num_threads, 1,
      [](int64_t begin, int64_t end, void* given) {
        const auto* wanted = static_cast<const Task*>(given);
        for (int64_t i = begin; i < end; ++i) wanted->fn(wanted->arg, static_cast<int32_t>(i));
      },
      &task);
}

namespace {

struct Idle {
  Device device;
  tokensparse::Context context;
};
std::mutex g_idle_mutex;
std::vector<Idle> g_idle;  // in no order; as many as calls ever ran at once

}  // namespace

Lease::Lease(const Device& device) : device_(device) {
  {
    std::lock_guard lock(g_idle_mutex);
    for (Idle& idle : g_idle) {
      if (idle.device != device) continue;
      context_ = std::move(idle.context);
      std::swap(idle, g_idle.back());
      g_idle.pop_back();
      break;
    }
  }
  const bool host = device.type == g_shim.cpu;
  if (context_.get() == nullptr) {
    tokensparse::ContextOptions options;
    options.backend = host ? g_host.backend : TSP_BACKEND_CUDA;
    options.device = device.index;
    if (host) options.parallel = on_torchs_threads;
    if (auto status = tokensparse::Context::create(options, &context_); !status.ok()) {
      fail(status.message());
    }
  }
  if (host) {
    uint32_t threads = 0;
    check(g_shim.num_threads(&threads), "its number of threads");
    if (g_host.threads > 0) threads = static_cast<uint32_t>(g_host.threads);
    check_status(tsp_context_set_threads(context(), static_cast<int32_t>(threads)));
  } else {
    void* stream = nullptr;
    if (g_shim.cuda_stream == nullptr) fail("q: this torch has no CUDA");
    check(g_shim.cuda_stream(device.index, &stream), "the current stream");
    check_status(tsp_context_set_stream(context(), stream));
  }
}

Lease::~Lease() {
  std::lock_guard lock(g_idle_mutex);
  if (context_.get() != nullptr) g_idle.push_back({device_, std::move(context_)});
}

tsp_context_t* Lease::context() { return context_.get(); }

void* Lease::workspace(size_t bytes) {
  if (bytes == 0) return nullptr;
  if (device_.type != g_shim.cpu) {
    // torch's allocator reuses the memory in the order of the stream: it may go before the GPU ran.
    device_workspace_.push_back(empty({static_cast<int64_t>(bytes)}, g_shim.uint8, device_));
    return device_workspace_.back().data();
  }
  void* memory = context_.workspace(bytes);
  if (memory == nullptr) fail("workspace: no " + std::to_string(bytes) + " bytes of memory");
  return memory;
}

void Lease::check_status(tsp_status_t status) {
  if (status != TSP_OK) fail(tsp_last_error());
}

}  // namespace tsp_torch
