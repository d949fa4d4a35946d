// SPDX-License-Identifier: MIT
// Cuts a workspace into aligned pieces. With a null base it only counts, so that the pieces of a
// call and the bytes it asks for are written down once.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tsp {

inline size_t round_up_to(size_t bytes, size_t align) {
  return (bytes + align - 1) / align * align;
}

template <size_t kAlign = 64>
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<unsigned char*>(base)) {}

  template <typename T, typename Count>
  T* take(Count count) {
    T* const piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += round_up_to(static_cast<size_t>(count) * sizeof(T), kAlign);
    return piece;
  }
  size_t used() const { return used_; }

 private:
  unsigned char* base_;
  size_t used_ = 0;
};

}  // namespace tsp
