// SPDX-License-Identifier: MIT
// The GPUs of this machine, and time on one of them. A build without CUDA has none.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "bench/floor.h"

namespace tsp::cli {

struct Gpu {
  std::string name;
  size_t memory_bytes = 0;
  int major = 0, minor = 0;  // compute capability
  std::string driver;        // of the machine
};
std::vector<Gpu> list_gpus();

/// Of the GPU that a context without a device number runs on.
std::string gpu_name();

/// Device seconds of a call that enqueues work on the default stream, without the gaps that a host
/// leaves between short calls: the mean over as many calls in a row as take two milliseconds.
double gpu_seconds(const std::function<void()>& call);

/// Products at the rate of the tensor cores at the card's highest clock, copies as measured.
bench::Floor gpu_floor(const std::string& isa);

/// Dense products of f16 or bf16 in f32, a clock and multiprocessor; 0 where it is not known.
int tensor_flops_per_clock(int major, int minor);

/// The version in the text of /proc/driver/nvidia/version; empty where there is none.
std::string driver_version(const std::string& text);

}  // namespace tsp::cli
