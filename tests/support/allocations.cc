// SPDX-License-Identifier: MIT
#include "tests/support/allocations.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<int64_t> allocations{0};

void* count_and_allocate(size_t bytes, size_t align) noexcept {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return std::aligned_alloc(align, (bytes + align) / align * align);
}
void* allocate_or_throw(size_t bytes, size_t align) {
  if (void* const memory = count_and_allocate(bytes, align)) return memory;
  throw std::bad_alloc();
}
constexpr size_t kAlign = __STDCPP_DEFAULT_NEW_ALIGNMENT__;

}  // namespace

namespace tsp::test {
int64_t num_allocations() { return allocations.load(); }
}  // namespace tsp::test

// The array forms call these.
void* operator new(size_t bytes) { return allocate_or_throw(bytes, kAlign); }
void* operator new(size_t bytes, std::align_val_t align) {
  return allocate_or_throw(bytes, static_cast<size_t>(align));
}
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  return count_and_allocate(bytes, kAlign);
}
void* operator new(size_t bytes, std::align_val_t align, const std::nothrow_t&) noexcept {
  return count_and_allocate(bytes, static_cast<size_t>(align));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
