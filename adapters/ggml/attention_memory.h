// SPDX-License-Identifier: MIT
// Memory that a server keeps between nodes: it grows, up to a limit that its blocks share.
#pragma once

#include <cstddef>
#include <memory>

namespace tsp::ggml_adapter {

class AttentionMemory {
 public:
  enum Block { kWorkspace, kDequantised, kIndices, kNumBlocks };

  explicit AttentionMemory(size_t max_bytes) : max_bytes_(max_bytes) {}

  /// False where the limit or the machine forbids it; the block is 64-byte aligned, its content
  /// undefined.
  [[nodiscard]] bool reserve(Block block, size_t bytes);
  void* data(Block block) const { return held_[block].data.get(); }
  size_t bytes(Block block) const { return held_[block].bytes; }
  /// Of all blocks together.
  size_t bytes() const;

 private:
  struct Free {
    void operator()(void* memory) const;
  };
  struct Held {
    std::unique_ptr<void, Free> data;
    size_t bytes = 0;
  };
  size_t max_bytes_;
  Held held_[kNumBlocks];
};

}  // namespace tsp::ggml_adapter
