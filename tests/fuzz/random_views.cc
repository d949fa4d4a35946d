// SPDX-License-Identifier: MIT
#include "tests/fuzz/random_views.h"

#include <algorithm>
#include <cstring>

namespace tsp::fuzz {
namespace {

void fill(Bytes& bytes, void* data, int32_t dtype, size_t size) {
  // One byte pattern of small values: fuzzing is about addresses, not about sums.
  static constexpr uint16_t kHalf[] = {0x0000, 0x3c00, 0xb800, 0x3400};   // f16
  static constexpr uint16_t kBrain[] = {0x0000, 0x3f80, 0xbf00, 0x3e80};  // bf16
  static constexpr float kFloat[] = {0.0f, 1.0f, -0.5f, 0.25f};
  const auto phase = static_cast<size_t>(bytes.below(4));
  const auto step = static_cast<size_t>(element_bytes(dtype));
  for (size_t i = 0; i + step <= size; i += step) {
    const size_t which = (i / step * 7 + phase) % 4;
    char* const at = static_cast<char*>(data) + i;
    if (dtype == TSP_F32) std::memcpy(at, &kFloat[which], 4);
    if (dtype == TSP_F16) std::memcpy(at, &kHalf[which], 2);
    if (dtype == TSP_BF16) std::memcpy(at, &kBrain[which], 2);
  }
}

}  // namespace

int64_t element_bytes(int32_t dtype) { return dtype == TSP_F32 ? 4 : 2; }

int64_t Lengths::longest_k() const {
  int64_t longest = 0;  // of offsets that may be anything
  for (size_t b = 1; b < k_offsets.size(); ++b) {
    longest = std::max(longest, int64_t{k_offsets[b]} - k_offsets[b - 1]);
  }
  return longest;
}

int32_t Lengths::prefix_total(int32_t window) const {
  int32_t total = 0;
  for (size_t b = 1; b < k_offsets.size(); ++b) {
    total += k_offsets[b] - k_offsets[b - 1] - std::min(window, q_offsets[b] - q_offsets[b - 1]);
  }
  return total;
}

Lengths random_lengths(Bytes& bytes) {
  Lengths lengths;
  for (int32_t n = bytes.range(1, 3); n > 0; --n) {
    const int32_t k_len = bytes.one_in(8) ? 0 : bytes.range(1, 40);
    const int32_t q_len = bytes.one_in(2) ? k_len : bytes.range(0, k_len);
    lengths.q_offsets.push_back(lengths.q_offsets.back() + q_len);
    lengths.k_offsets.push_back(lengths.k_offsets.back() + k_len);
  }
  return lengths;
}

tsp_tensor_t random_view(Bytes& bytes, Memory& memory, int32_t dtype, int64_t tokens, int64_t heads,
                         int64_t dim) {
  tsp_tensor_t view{};
  view.dtype = dtype;
  view.tokens = tokens;
  view.heads = heads;
  view.dim = dim;
  const int32_t layout = bytes.below(3);
  if (layout == 0) {  // token-major
    view.token_stride = heads * dim;
    view.head_stride = dim;
    view.dim_stride = 1;
  } else if (layout == 1) {  // head-major
    view.token_stride = dim;
    view.head_stride = std::max<int64_t>(tokens, 1) * dim;
    view.dim_stride = 1;
  } else {  // channels apart
    view.token_stride = 1;
    view.head_stride = std::max<int64_t>(tokens, 1) * dim;
    view.dim_stride = std::max<int64_t>(tokens, 1);
  }
  const auto size = static_cast<size_t>(tokens * heads * dim * element_bytes(dtype));
  view.data = memory.allocate(size);
  fill(bytes, view.data, dtype, size);
  return view;
}

tsp_tensor_t random_paged_view(Bytes& bytes, Memory& memory, int32_t dtype, const Lengths& lengths,
                               int64_t heads, int64_t dim) {
  const int32_t block_size = bytes.range(1, 16);
  const auto table_stride =
      static_cast<int32_t>((lengths.longest_k() + block_size - 1) / block_size);
  const int32_t blocks = bytes.range(1, 8);
  tsp_tensor_t view = random_view(bytes, memory, dtype, int64_t{blocks} * block_size, heads, dim);
  view.token_stride = heads * dim;
  view.head_stride = dim;
  view.dim_stride = 1;
  view.block_size = block_size;
  view.block_stride = int64_t{block_size} * heads * dim;
  view.table_stride = table_stride;
  view.tokens = 0;
  const auto entries = static_cast<size_t>(table_stride * lengths.num_seqs());
  auto* const table = static_cast<int32_t*>(memory.allocate(entries * sizeof(int32_t)));
  for (size_t i = 0; i < entries; ++i) table[i] = bytes.below(blocks);
  view.block_table = table;
  return view;
}

void spoil(Bytes& bytes, tsp_tensor_t& view) {
  switch (bytes.below(13)) {
    case 0:
      view.data = nullptr;
      break;
    case 1:
      if (view.data != nullptr) view.data = static_cast<char*>(view.data) + 1;
      break;
    case 2:
      view.dtype = static_cast<int32_t>(bytes.strange_integer());
      break;
    case 3:
      view.tokens = bytes.strange_integer();
      break;
    case 4:
      view.heads = bytes.strange_integer();
      break;
    case 5:
      view.dim = bytes.strange_integer();
      break;
    case 6:
      view.token_stride = bytes.strange_integer();
      break;
    case 7:
      view.head_stride = bytes.strange_integer();
      break;
    case 8:
      view.dim_stride = bytes.strange_integer();
      break;
    case 9:
      view.block_size = static_cast<int32_t>(bytes.strange_integer());
      break;
    case 10:
      view.block_stride = bytes.strange_integer();
      break;
    case 11:
      view.table_stride = bytes.strange_integer();
      break;
    case 12:
      view.block_table = nullptr;
      break;
  }
}

bool impossible(const tsp_tensor_t& view) {
  const bool bad_dtype = view.dtype < TSP_F32 || view.dtype > TSP_BF16;
  const bool bad_shape = view.heads < 1 || view.dim < 1;
  const bool bad_strides = view.token_stride < 0 || view.head_stride < 0 || view.dim_stride < 0;
  const bool bad_pages = view.block_table != nullptr &&
                         (view.block_size < 1 || view.block_stride < 0 || view.table_stride < 0);
  return bad_dtype || bad_shape || bad_strides || bad_pages ||
         (view.block_table == nullptr && view.tokens < 0);
}

bool reachable(const tsp_tensor_t& view, const Memory& memory, const tsp_batch_t& batch) {
  if (view.data == nullptr || impossible(view)) return true;
  Wide last = static_cast<Wide>(view.heads - 1) * static_cast<Wide>(view.head_stride) +
              static_cast<Wide>(view.dim - 1) * static_cast<Wide>(view.dim_stride);
  if (view.block_table == nullptr) {
    if (view.tokens == 0) return true;
    last += static_cast<Wide>(view.tokens - 1) * static_cast<Wide>(view.token_stride);
  } else {
    const Wide entries =
        static_cast<Wide>(std::max(batch.num_seqs, 1)) * static_cast<Wide>(view.table_stride);
    if (!memory.holds(view.block_table, entries * Wide{sizeof(int32_t)})) return false;
    int32_t largest = 0;
    for (int64_t i = 0; i < static_cast<int64_t>(entries); ++i) {
      largest = std::max(largest, view.block_table[i]);
    }
    last += static_cast<Wide>(largest) * static_cast<Wide>(view.block_stride) +
            static_cast<Wide>(view.block_size - 1) * static_cast<Wide>(view.token_stride);
  }
  return memory.holds(view.data, (last + 1) * static_cast<Wide>(element_bytes(view.dtype)));
}

}  // namespace tsp::fuzz
