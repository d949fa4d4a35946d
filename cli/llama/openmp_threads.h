// SPDX-License-Identifier: MIT
// Our operations on the threads that ggml's nodes run on.
#pragma once

#include <cstdint>
#include <string>

#include "tokensparse/tokensparse.hpp"

namespace tsp::cli {

/// A tsp_parallel_fn on OpenMP's team.
void run_on_openmp(void*, int32_t num_threads, void (*fn)(void* arg, int32_t i), void* arg);

/// A CPU context whose thread pool is OpenMP. Used from the thread that calls llama_decode(), with
/// the number of threads that llama.cpp was given, it wakes the very team of ggml, which otherwise
/// spins beside our own threads after each of its nodes. Attention of 3,782 tokens through the 0.5B
/// model: 1.65 to 1.69 s on the team, 1.94 to 2.10 s on threads of our own (2 cores AMD EPYC Zen 5,
/// 2026-11-25). Throws Failure.
tokensparse::Context open_on_openmp(const std::string& isa, int32_t threads);

}  // namespace tsp::cli
