// SPDX-License-Identifier: MIT
// Which kernels serve a card: plain C++, so that cards this machine has not are tested too.
#pragma once

#include <string>

#include "core/error.h"

namespace tsp::cuda {

struct Isa {
  std::string name;
  bool warpgroups = false;  // wgmma: compute capability 9.0
  bool cudnn = false;       // beside our own kernels, if it can be loaded
};

/// On a card of compute capability `major`.`minor`. `wanted`: what the caller asks for, empty = the
/// best. "sm_90" is our own kernels alone, "sm_90+cudnn" has cuDNN beside them, "sm_80" the kernels
/// that run everywhere. Where warpgroup products are, our own are faster than cuDNN.
[[nodiscard]] inline tsp_status_t choose_isa(int major, int minor, const std::string& wanted,
                                             Isa* isa) {
  constexpr int kMinMajor = 8;  // cp.async, ldmatrix and mma.sync for bf16: Ampere
  constexpr const char* kEverywhere = "sm_80";
  if (major < kMinMajor) {
    return fail(TSP_UNAVAILABLE, "device: must have compute capability 8.0 or later, got %d.%d",
                major, minor);
  }
  const std::string own = "sm_" + std::to_string(major) + std::to_string(minor);
  isa->name = wanted == kEverywhere ? wanted : own;
  isa->warpgroups = major == 9 && isa->name == own;
  isa->cudnn = wanted == own + "+cudnn" || (wanted.empty() && !isa->warpgroups);
  return TSP_OK;
}

/// The caller got what it asked for.
[[nodiscard]] inline tsp_status_t check_isa(const std::string& wanted, const std::string& got) {
  if (wanted.empty() || wanted == got) return TSP_OK;
  return fail(TSP_UNAVAILABLE, "isa: must be one this machine has (%s), got \"%s\"", got.c_str(),
              wanted.c_str());
}

}  // namespace tsp::cuda
