// SPDX-License-Identifier: MIT
// Random arguments for the C ABI: views on memory of exactly their size, then spoiled at random.
// `Memory` knows what a view may touch, so a call that would have to leave it is not made.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <vector>

#include "tokensparse/tokensparse.h"

namespace tsp::fuzz {

/// Decisions read from the fuzzer's input; zeros when it is used up.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  uint32_t next(int bytes) {
    uint32_t value = 0;
    for (int i = 0; i < bytes; ++i) value = value << 8 | (at_ < size_ ? data_[at_++] : 0u);
    return value;
  }
  int32_t below(int32_t bound) {
    return static_cast<int32_t>(next(2) % static_cast<uint32_t>(bound));
  }
  int32_t range(int32_t low, int32_t high) { return low + below(high - low + 1); }
  bool one_in(int32_t n) { return below(n) == n - 1; }
  int32_t pick(std::initializer_list<int32_t> values) {
    return values.begin()[below(static_cast<int32_t>(values.size()))];
  }
  template <typename T, size_t N>
  T pick(const T (&values)[N]) {
    return values[static_cast<size_t>(below(static_cast<int32_t>(N)))];
  }
  int64_t strange_integer() {
    static constexpr int64_t kValues[] = {0,
                                          -1,
                                          1,
                                          2,
                                          3,
                                          INT32_MAX,
                                          INT32_MIN,
                                          INT64_MAX,
                                          INT64_MIN,
                                          1 << 14,
                                          1 << 30,
                                          int64_t{1} << 44,
                                          int64_t{1} << 62};
    return pick(kValues);
  }
  float strange_float() {
    static constexpr float kValues[] = {
        0, -1, 1, 0.5f, 1e-30f, 1e30f, __builtin_inff(), -__builtin_inff(), __builtin_nanf("")};
    return pick(kValues);
  }

 private:
  const uint8_t* data_;
  size_t size_;
  size_t at_ = 0;
};

/// Extents of views with strange strides: beyond int64, and exact where it matters (below 2^53).
using Wide = double;

/// Owns what views point into; every block has exactly the size asked for, so that the address
/// sanitizer sees the first byte too far.
class Memory {
 public:
  void* allocate(size_t bytes) {
    blocks_.push_back({std::unique_ptr<void, Free>(std::malloc(bytes == 0 ? 1 : bytes)), bytes});
    return blocks_.back().memory.get();
  }
  /// Aligned as workspaces must be; at most 63 bytes larger than asked for.
  void* allocate_aligned(size_t bytes) {
    blocks_.push_back(
        {std::unique_ptr<void, Free>(std::aligned_alloc(64, (bytes + 63) / 64 * 64 + 64)), bytes});
    return blocks_.back().memory.get();
  }
  /// True when [data, data + bytes) lies in one block.
  bool holds(const void* data, Wide bytes) const {
    for (const Block& block : blocks_) {
      const auto begin = reinterpret_cast<uintptr_t>(block.memory.get());
      const auto at = reinterpret_cast<uintptr_t>(data);
      if (at >= begin && at <= begin + block.bytes) {
        return bytes <= static_cast<Wide>(begin + block.bytes - at);
      }
    }
    return false;
  }

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  struct Block {
    std::unique_ptr<void, Free> memory;
    size_t bytes;
  };
  std::vector<Block> blocks_;
};

struct Lengths {
  std::vector<int32_t> q_offsets{0};
  std::vector<int32_t> k_offsets{0};
  int32_t num_seqs() const { return static_cast<int32_t>(q_offsets.size()) - 1; }
  int32_t q_total() const { return q_offsets.back(); }
  int32_t k_total() const { return k_offsets.back(); }
  int64_t longest_k() const;
  int32_t prefix_total(int32_t window) const;
};
Lengths random_lengths(Bytes& bytes);

int64_t element_bytes(int32_t dtype);

/// [tokens, heads, dim], token-major, head-major or with a dim stride, filled with small values.
tsp_tensor_t random_view(Bytes& bytes, Memory& memory, int32_t dtype, int64_t tokens, int64_t heads,
                         int64_t dim);
/// The same behind a block table that reaches every sequence of `lengths`.
tsp_tensor_t random_paged_view(Bytes& bytes, Memory& memory, int32_t dtype, const Lengths& lengths,
                               int64_t heads, int64_t dim);
/// Sets one field of the view to something strange.
void spoil(Bytes& bytes, tsp_tensor_t& view);

/// What the library must refuse whatever the rest says.
bool impossible(const tsp_tensor_t& view);
/// True when everything the view names lies in `memory` (null data names nothing).
bool reachable(const tsp_tensor_t& view, const Memory& memory, const tsp_batch_t& batch);

}  // namespace tsp::fuzz
