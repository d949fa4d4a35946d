// SPDX-License-Identifier: MIT
// Tensors of the tests: any layout, everything outside the view poisoned with NaN.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "core/dtype.h"
#include "tests/support/backends.h"

namespace tsp::test {

enum class Layout {
  kTokenMajor,  // [T, H, D]
  kHeadMajor,   // [H, T, D]
  kPadded,      // [T, H, D] with odd gaps after each row and head
  kDimStrided,  // [H, D, T]: channels apart
  kPaged,       // blocks of 16 in random order, unused blocks and tails poisoned
};

/// Owns what a view points to. Values are read and written as f32 through (token, head, channel);
/// of a paged tensor, token is the row over all sequences laid end to end.
class Tensor {
 public:
  Tensor() = default;
  /// `lens`: tokens of each sequence (they matter for paged tensors only).
  Tensor(int32_t dtype, std::vector<int32_t> lens, int64_t heads, int64_t dim,
         Layout layout = Layout::kTokenMajor, uint32_t seed = 1);

  tsp_tensor_t view() const { return view_; }
  int64_t tokens() const { return tokens_; }
  float at(int64_t token, int64_t head, int64_t d = 0) const {
    return load_as_f32(data_.data(), view_.dtype, offset(token, head, d));
  }
  void set(int64_t token, int64_t head, int64_t d, float value) {
    store_from_f32(data_.data(), view_.dtype, offset(token, head, d), value);
  }
  /// Normal values times `scale`.
  Tensor& randomise(uint32_t seed, float scale = 1);
  std::vector<unsigned char>& bytes() { return data_; }
  const std::vector<unsigned char>& bytes() const { return data_; }
  const std::vector<int32_t>& table() const { return table_; }
  /// Every element of the view as bits, in (token, head, channel) order.
  std::vector<uint32_t> bits() const;
  /// True while every byte outside the view still holds the poison.
  bool poison_intact() const;

 private:
  int64_t offset(int64_t token, int64_t head, int64_t d) const;

  tsp_tensor_t view_{};
  int64_t tokens_ = 0;
  std::vector<int32_t> starts_;  // first row of each sequence
  std::vector<int32_t> table_;   // paged
  std::vector<unsigned char> data_;
};

/// A tensor's memory on a backend's device: the tensor's own for host backends, a copy elsewhere.
/// `sync()` brings the device's bytes back.
class OnDevice {
 public:
  OnDevice(const Backend& backend, Tensor& tensor);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  tsp_tensor_t view() const { return view_; }
  void sync();

 private:
  const Backend& backend_;
  Tensor& tensor_;
  tsp_tensor_t view_;
  void* data_ = nullptr;
  void* table_ = nullptr;
};

/// Plain memory on a backend's device, such as index lists and workspace. Poisoned at first.
class Bytes {
 public:
  Bytes(const Backend& backend, size_t bytes);
  ~Bytes();
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
  void* data() const { return data_; }
  size_t size() const { return size_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  template <typename T>
  std::vector<T> read() const {
    std::vector<T> host(size_ / sizeof(T));
    copy_out(host.data());
    return host;
  }
  template <typename T>
  void write(const std::vector<T>& host) {
    copy_in(host.data(), host.size() * sizeof(T));
  }

 private:
  void copy_out(void* host) const;
  void copy_in(const void* host, size_t bytes);
  const Backend& backend_;
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace tsp::test
