// SPDX-License-Identifier: MIT
#include "tests/support/tensor.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <numeric>

namespace tsp::test {
namespace {
constexpr int kBlock = 16;
constexpr unsigned char kPoison = 0xff;  // NaN in f32, f16 and bf16
}  // namespace

Tensor::Tensor(int32_t dtype, std::vector<int32_t> lens, int64_t heads, int64_t dim, Layout layout,
               uint32_t seed) {
  for (const int32_t len : lens) {
    starts_.push_back(static_cast<int32_t>(tokens_));
    tokens_ += len;
  }
  view_.dtype = dtype;
  view_.tokens = tokens_;
  view_.heads = heads;
  view_.dim = dim;
  view_.dim_stride = 1;
  int64_t elements = tokens_ * heads * dim;
  switch (layout) {
    case Layout::kTokenMajor:
      view_.head_stride = dim;
      view_.token_stride = heads * dim;
      break;
    case Layout::kHeadMajor:
      view_.token_stride = dim;
      view_.head_stride = tokens_ * dim;
      break;
    case Layout::kPadded:
      view_.head_stride = dim + 3;
      view_.token_stride = heads * view_.head_stride + 5;
      elements = tokens_ * view_.token_stride;
      break;
    case Layout::kDimStrided:
      view_.token_stride = 1;
      view_.dim_stride = tokens_ + 1;
      view_.head_stride = dim * view_.dim_stride;
      elements = heads * view_.head_stride;
      break;
    case Layout::kPaged: {
      view_.token_stride = heads * dim;
      view_.head_stride = dim;
      view_.block_size = kBlock;
      view_.block_stride = kBlock * heads * dim + 8;
      const int32_t longest = *std::max_element(lens.begin(), lens.end());
      view_.table_stride = (longest + kBlock - 1) / kBlock + 1;
      std::vector<int32_t> blocks(static_cast<size_t>(view_.table_stride) * lens.size() + 3);
      std::iota(blocks.begin(), blocks.end(), 0);
      std::shuffle(blocks.begin(), blocks.end(), std::mt19937(seed));
      elements = static_cast<int64_t>(blocks.size()) * view_.block_stride;
      table_.assign(blocks.begin(), blocks.end() - 3);
      for (size_t b = 0; b < lens.size(); ++b) {  // behind the last token nobody may look
        auto* const row = table_.data() + b * static_cast<size_t>(view_.table_stride);
        std::fill(row + (lens[b] + kBlock - 1) / kBlock, row + view_.table_stride, -1);
      }
      view_.block_table = table_.data();
      break;
    }
  }
  data_.assign(static_cast<size_t>(std::max<int64_t>(elements, 1) * dtype_bytes(dtype)), kPoison);
  view_.data = data_.data();
}

int64_t Tensor::offset(int64_t token, int64_t head, int64_t d) const {
  int64_t row = token * view_.token_stride;
  if (!table_.empty()) {
    const auto seq = std::upper_bound(starts_.begin(), starts_.end(), token) - starts_.begin() - 1;
    const int64_t t = token - starts_[static_cast<size_t>(seq)];
    row = table_[static_cast<size_t>(seq * view_.table_stride + t / kBlock)] * view_.block_stride +
          t % kBlock * view_.token_stride;
  }
  return row + head * view_.head_stride + d * view_.dim_stride;
}

Tensor& Tensor::randomise(uint32_t seed, float scale) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  for (int64_t t = 0; t < tokens_; ++t) {
    for (int64_t h = 0; h < view_.heads; ++h) {
      for (int64_t d = 0; d < view_.dim; ++d) set(t, h, d, normal(generator) * scale);
    }
  }
  return *this;
}

std::vector<uint32_t> Tensor::bits() const {
  std::vector<uint32_t> all;
  const auto width = static_cast<size_t>(dtype_bytes(view_.dtype));
  for (int64_t t = 0; t < tokens_; ++t) {
    for (int64_t h = 0; h < view_.heads; ++h) {
      for (int64_t d = 0; d < view_.dim; ++d) {
        uint32_t bits = 0;
        std::memcpy(&bits, data_.data() + static_cast<size_t>(offset(t, h, d)) * width, width);
        all.push_back(bits);
      }
    }
  }
  return all;
}

bool Tensor::poison_intact() const {
  const auto width = static_cast<size_t>(dtype_bytes(view_.dtype));
  std::vector<bool> inside(data_.size() / width, false);
  for (int64_t t = 0; t < tokens_; ++t) {
    for (int64_t h = 0; h < view_.heads; ++h) {
      for (int64_t d = 0; d < view_.dim; ++d) inside[static_cast<size_t>(offset(t, h, d))] = true;
    }
  }
  for (size_t i = 0; i < data_.size(); ++i) {
    if (!inside[i / width] && data_[i] != kPoison) return false;
  }
  return true;
}

OnDevice::OnDevice(const Backend& backend, Tensor& tensor)
    : backend_(backend), tensor_(tensor), view_(tensor.view()) {
  view_.data = tensor.bytes().data();
  if (!tensor.table().empty()) view_.block_table = tensor.table().data();
  if (backend.memory == nullptr) return;
  data_ = backend.memory->allocate(tensor.bytes().size());
  backend.memory->upload(data_, tensor.bytes().data(), tensor.bytes().size());
  view_.data = data_;
  if (!tensor.table().empty()) {
    const size_t bytes = tensor.table().size() * sizeof(int32_t);
    table_ = backend.memory->allocate(bytes);
    backend.memory->upload(table_, tensor.table().data(), bytes);
    view_.block_table = static_cast<int32_t*>(table_);
  }
}

OnDevice::~OnDevice() {
  if (data_ != nullptr) backend_.memory->release(data_);
  if (table_ != nullptr) backend_.memory->release(table_);
}

void OnDevice::sync() {
  if (data_ == nullptr) return;
  backend_.memory->synchronise();
  backend_.memory->download(tensor_.bytes().data(), data_, tensor_.bytes().size());
}

Bytes::Bytes(const Backend& backend, size_t bytes) : backend_(backend), size_(bytes) {
  const std::vector<unsigned char> poison(std::max<size_t>(bytes, 1), kPoison);
  if (backend.memory != nullptr) {
    data_ = backend.memory->allocate(poison.size());
    backend.memory->upload(data_, poison.data(), poison.size());
  } else {
    data_ = ::operator new (poison.size(), std::align_val_t{64});
    std::memcpy(data_, poison.data(), poison.size());
  }
}

Bytes::~Bytes() {
  if (backend_.memory != nullptr) {
    backend_.memory->release(data_);
  } else {
    ::operator delete (data_, std::align_val_t{64});
  }
}

void Bytes::copy_out(void* host) const {
  if (backend_.memory != nullptr) {
    backend_.memory->synchronise();
    backend_.memory->download(host, data_, size_);
  } else {
    std::memcpy(host, data_, size_);
  }
}

void Bytes::copy_in(const void* host, size_t bytes) {
  if (backend_.memory != nullptr) {
    backend_.memory->upload(data_, host, bytes);
  } else {
    std::memcpy(data_, host, bytes);
  }
}

}  // namespace tsp::test
