// SPDX-License-Identifier: MIT
// The one thing we want of oneDNN: a matrix product. The library is opened at run time, so that a
// program built with it starts, and says so, where it is missing. onednn.cc needs its headers;
// no_onednn.cc stands in for a build without them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace tsp::ggml_adapter {

/// c[m, n] = a[m, k] x b[n, k] transposed, summed in f32. a and b are dense; c is f32.
struct Gemm {
  int64_t m, n, k;
  int64_t c_stride;  // elements from one row of c to the next
  bool bf16;         // a and b; otherwise f32

  bool operator==(const Gemm&) const = default;
};

class OneDnn {
 public:
  /// Opens `path`, or what this build was configured with and then the system's where it is empty.
  /// Null, with the reason in `why`. Any version 3 that runs on OpenMP will do.
  static std::unique_ptr<OneDnn> open(const std::string& path, int32_t threads, std::string& why);
  virtual ~OneDnn() = default;

  virtual std::string version() const = 0;  // "3.2.0"
  /// Whether the processor has a dot product of bf16 that the library uses; vectors of 512 bits.
  virtual bool has_bf16() const = 0;
  virtual bool has_avx512() const = 0;

  /// As in open(). OpenMP may hand out fewer: each call asks it, and makes anew what was made for
  /// another number.
  virtual void set_threads(int32_t threads) = 0;
  /// Makes the code for a shape and the memory it works in; run() does it where it was not done.
  [[nodiscard]] virtual bool prepare(const Gemm& gemm) = 0;
  [[nodiscard]] virtual bool run(const Gemm& gemm, const void* a, const void* b, float* c) = 0;
  virtual size_t scratch_bytes() const = 0;

  /// body(i) for each i in [0, count), on the threads that run() computes on.
  virtual void parallel(int64_t count, const std::function<void(int64_t)>& body) const = 0;
};

}  // namespace tsp::ggml_adapter
