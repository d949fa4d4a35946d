// SPDX-License-Identifier: MIT
// llama.cpp's own attention kernel on the same memory, in the same process: graphs of one
// FLASH_ATTN_EXT node, one graph a micro-batch of queries, as llama.cpp runs a prompt.
#pragma once

#include <memory>

#include "bench/workload.h"

namespace tsp::bench {

class GgmlPeer {
 public:
  /// Null where llama.cpp has no such kernel (q must be f32) or this build has no llama.cpp.
  static std::unique_ptr<GgmlPeer> create(const Workload& work, int threads, int64_t micro_batch);
  virtual ~GgmlPeer() = default;

  /// Dense causal attention; seconds of the kernel alone (masks are made outside the clock: a
  /// model makes one for all its layers).
  virtual double run() = 0;
  virtual const float* out() const = 0;  // [Tq, Hq, D] after run()
};

}  // namespace tsp::bench
