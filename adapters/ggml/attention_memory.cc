// SPDX-License-Identifier: MIT
#include "adapters/ggml/attention_memory.h"

#include <algorithm>
#include <cstdlib>

namespace tsp::ggml_adapter {

void AttentionMemory::Free::operator()(void* memory) const { std::free(memory); }

size_t AttentionMemory::bytes() const {
  size_t sum = 0;
  for (const Held& held : held_) sum += held.bytes;
  return sum;
}

bool AttentionMemory::reserve(Block block, size_t bytes) {
  Held& held = held_[block];
  if (bytes <= held.bytes) return true;
  constexpr size_t kAlign = 64;
  const auto round_up = [](size_t size) { return (size + kAlign - 1) / kAlign * kAlign; };
  const size_t others = this->bytes() - held.bytes;
  const size_t room = max_bytes_ > others ? max_bytes_ - others : 0;
  // Chunks see more keys from one to the next: some spare room, where the limit leaves it.
  const size_t rounded = std::min(round_up(bytes + bytes / 4), std::max(room, round_up(bytes)));
  if (rounded > room) return false;
  held = {};
  held.data.reset(std::aligned_alloc(kAlign, round_up(rounded)));
  if (held.data == nullptr) return false;
  held.bytes = round_up(rounded);
  return true;
}

}  // namespace tsp::ggml_adapter
