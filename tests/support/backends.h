// SPDX-License-Identifier: MIT
// The backends that a test body runs on, and where their memory lies.
#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "tokensparse/tokensparse.hpp"

namespace tsp::test {

/// Memory of a backend's device. Host backends work on host memory; cuda_backend.cc has the other.
struct DeviceMemory {
  virtual ~DeviceMemory() = default;
  virtual void* allocate(size_t bytes) = 0;
  virtual void release(void* memory) = 0;
  virtual void upload(void* device, const void* host, size_t bytes) = 0;
  virtual void download(void* host, const void* device, size_t bytes) = 0;
  virtual void synchronise() = 0;
};

struct Backend {
  std::string name;  // "ref", "cpu_avx512", "cuda"
  int32_t backend = TSP_BACKEND_REF;
  std::string isa;
  std::shared_ptr<DeviceMemory> memory;  // null: host

  tokensparse::Context open(int32_t num_threads = 2, tsp_parallel_fn parallel = nullptr) const {
    tokensparse::ContextOptions options;
    options.backend = backend;
    options.num_threads = num_threads;
    options.isa = isa.empty() ? nullptr : isa.c_str();
    options.parallel = parallel;
    tokensparse::Context ctx;
    if (auto status = tokensparse::Context::create(options, &ctx); !status.ok()) {
      throw std::runtime_error(name + ": " + status.message());
    }
    return ctx;
  }
  /// CPU instruction sets with TSP_PRECISION_BF16.
  bool has_bf16() const { return isa == "avx512_bf16" || isa.starts_with("amx_"); }
  bool is_cuda() const { return backend == TSP_BACKEND_CUDA; }
};

/// Every backend that this build and this machine can run. A forced path that is not the active one
/// is an error, so none of them is ever another one in disguise.
std::vector<Backend> all_backends();
/// The CUDA backend, or nothing where the build or the machine has none.
std::vector<Backend> cuda_backends();

inline void PrintTo(const Backend& backend, std::ostream* out) { *out << backend.name; }

}  // namespace tsp::test
