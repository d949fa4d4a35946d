// SPDX-License-Identifier: MIT
// What a context holds. Ops read it; only context.cc writes it.
#pragma once

#include <memory>
#include <string>

#include "core/op_table.h"
#include "core/thread_pool.h"
#include "tokensparse/context.h"

struct tsp_context {
  const tsp::OpTable* ops = nullptr;
  int32_t backend = TSP_BACKEND_CPU;
  std::string isa;
  int32_t device = 0;
  void* stream = nullptr;                    // CUDA
  std::unique_ptr<tsp::ThreadPool> threads;  // CPU and ref
  std::shared_ptr<void> backend_state;       // what a backend keeps between calls; its own type
};

namespace tsp {
/// Tensors and index lists of this context are memory that this process can read.
inline bool on_host(const tsp_context& ctx) { return ctx.backend != TSP_BACKEND_CUDA; }
}  // namespace tsp
