// SPDX-License-Identifier: MIT
// What a context holds. Ops read it; only context.cc writes it.
#pragma once

#include <memory>
#include <string>

#include "core/thread_pool.h"
#include "dispatch/op_table.h"
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
