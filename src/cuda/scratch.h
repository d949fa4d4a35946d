// SPDX-License-Identifier: MIT
// Cuts a workspace into aligned pieces. With a null base it only counts.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tsp::cuda {

class Scratch {
 public:
  explicit Scratch(void* base) : base_(reinterpret_cast<uintptr_t>(base)) {}

  template <typename T>
  T* take(int64_t count) {
    T* piece = base_ == 0 ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += (static_cast<size_t>(count) * sizeof(T) + kAlign - 1) / kAlign * kAlign;
    return piece;
  }
  size_t used() const { return used_; }

  static constexpr size_t kAlign = 256;

 private:
  uintptr_t base_;
  size_t used_ = 0;
};

}  // namespace tsp::cuda
