// SPDX-License-Identifier: MIT
/// \file arguments.h
/// An operator's stack as tensors, numbers and strings, and its results. Everything that breaks a
/// rule throws std::runtime_error, which torch hands to Python as a RuntimeError.
#ifndef TOKENSPARSE_ADAPTERS_PYTHON_TORCH_ARGUMENTS_H_
#define TOKENSPARSE_ADAPTERS_PYTHON_TORCH_ARGUMENTS_H_

#include <initializer_list>
#include <string>
#include <vector>

#include "shim.h"
#include "tokensparse/tokensparse.hpp"

namespace tsp_torch {

/// Set once, by tsp_torch_register().
extern Shim g_shim;

[[noreturn]] void fail(const std::string& message);
/// What torch returned of a function that should not have failed.
void check(int32_t error, const char* what);

/// Owns one reference to a torch tensor.
class Tensor {
 public:
  explicit Tensor(TensorHandle handle) : handle_(handle) {}
  Tensor(Tensor&& other) noexcept : handle_(other.release()) {}
  Tensor& operator=(Tensor&&) = delete;
  ~Tensor() {
    if (handle_ != nullptr) g_shim.delete_tensor(handle_);
  }
  TensorHandle get() const { return handle_; }
  TensorHandle release() {
    TensorHandle handle = handle_;
    handle_ = nullptr;
    return handle;
  }
  void* data() const;
  int64_t size(int axis) const;
  int64_t stride(int axis) const;

 private:
  TensorHandle handle_;
};

struct Device {
  int32_t type = 0;
  int32_t index = 0;
  bool operator==(const Device&) const = default;
};
Device device_of(const Tensor& tensor);
/// A new contiguous tensor.
Tensor empty(std::initializer_list<int64_t> sizes, int32_t dtype, const Device& device);

/// The arguments of a call in the order of the schema; owns those that are objects.
class Arguments {
 public:
  Arguments(Value* stack, uint64_t count) : stack_(stack), count_(count) {}
  ~Arguments();

  const Tensor& tensor();
  double real();
  int64_t integer();
  const char* text();
  /// The place of a string in `names`.
  int32_t choice(const char* argument, std::initializer_list<const char*> names);

 private:
  Value* stack_;
  uint64_t count_;
  uint64_t next_ = 0;
  std::vector<Tensor> tensors_;  // reserved: references stay
  std::vector<StringHandle> strings_;
};

/// A tensor [tokens, heads, dim], or [tokens, heads] with dim 1, as the library sees it. Throws
/// what breaks the rules that torch's own types leave open.
tsp_tensor_t view(const Tensor& tensor, const char* name, const Device& device, int dims = 3);
/// int32 sets [1, S, L] and their count [1].
tsp_index_sets_t sets(const Tensor& indices, const Tensor& kept, const Device& device);
/// dtype of torch for the library's.
int32_t torch_dtype(int32_t dtype);
/// A Python int where the library takes an int32.
int32_t int32(int64_t value, const char* argument);

/// A context of the pool for one call, with its workspace: on the CPU it runs on torch's own
/// threads, on a GPU on torch's current stream.
class Lease {
 public:
  explicit Lease(const Device& device);
  ~Lease();
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  template <typename Params, typename Query, typename Op>
  void run(Params params, Query query, Op op) {
    size_t bytes = 0;
    check_status(query(context(), &params, &bytes));
    params.workspace = workspace(bytes);
    params.workspace_bytes = bytes;
    check_status(op(context(), &params));
  }

 private:
  tsp_context_t* context();
  void* workspace(size_t bytes);
  static void check_status(tsp_status_t status);

  Device device_;
  tokensparse::Context context_;
  std::vector<Tensor> device_workspace_;
};

/// As tsp_parallel_fn: indices on torch's own threads, which are there already and may still spin
/// after torch's last operation; threads of our own would wait for a core.
void on_torchs_threads(void* user, int32_t num_threads, void (*fn)(void* arg, int32_t i),
                       void* arg);

/// What `backend` and `threads` of Python's environment say: "cpu" or "ref"; 0 = torch's number.
struct HostOptions {
  int32_t backend = TSP_BACKEND_CPU;
  int32_t threads = 0;
};
extern HostOptions g_host;

}  // namespace tsp_torch
#endif  // TOKENSPARSE_ADAPTERS_PYTHON_TORCH_ARGUMENTS_H_
