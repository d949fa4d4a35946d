// SPDX-License-Identifier: MIT
// Memory and contents of a benchmark: q, k, v and out, laid out [token][head][dim] as llama.cpp
// does.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

#include "bench/shape.h"

namespace tsp::bench {

/// 64-byte aligned host memory.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes);
  void* data() const { return memory_.get(); }
  size_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<void, Free> memory_;
  size_t bytes_ = 0;
};

tsp_tensor_t token_major(const Buffer& buffer, tsp_dtype_t dtype, int64_t tokens, int64_t heads,
                         int64_t dim);

/// Values of a layer that attends unevenly: normal noise, plus one direction per KV head along
/// which keys differ by a heavy-tailed factor that every query asks for, plus a first token that
/// draws everybody. The default coverage then drops a realistic part: 0.005 keeps 85 % of 4,096 to
/// 16,384 tokens (14 query and 2 KV heads, D 64). The same shape has the same values everywhere.
struct Workload {
  explicit Workload(const Shape& shape);

  Shape shape;
  Buffer q_memory, k_memory, v_memory, out_memory;
  tsp_tensor_t q, k, v, out;
};

}  // namespace tsp::bench
