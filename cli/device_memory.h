// SPDX-License-Identifier: MIT
// Where the program's tensors lie for a backend: in place for the CPU, in a copy for a GPU.
#pragma once

#include <cstddef>

namespace tsp::cli {

class DeviceMemory {
 public:
  /// `host` may be null: memory without a counterpart. Throws Failure where the GPU has no room.
  DeviceMemory(bool on_gpu, void* host, size_t bytes);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  void* data() const { return data_; }
  void upload();
  void download();

 private:
  bool on_gpu_;
  void* host_;
  size_t bytes_;
  void* data_;
};

/// Waits for the GPU's work; throws Failure with the reason when it failed.
void synchronise(bool on_gpu);

}  // namespace tsp::cli
