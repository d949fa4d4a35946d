// SPDX-License-Identifier: MIT
// Files of named tensors in the safetensors format: 8 bytes of header length, a JSON header, data.
// The reader believes nothing: what it hands out lies within the file and fits its dtype and shape.
#pragma once

#include <cstddef>
#include <cstdint>
#include <istream>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace tsp::cli {

struct TensorInfo {
  std::string name;
  std::string dtype;           // "F32", "BF16", ...; names this program has not heard of included
  std::vector<int64_t> shape;  // row-major
  uint64_t begin = 0;          // bytes from the start of the data
  uint64_t bytes = 0;
};

/// "[2, 3, 64]"
std::string shape_text(const std::vector<int64_t>& shape);

/// Bytes of an element, or 0 for a dtype that is not known.
uint64_t safetensors_dtype_bytes(std::string_view dtype);

/// Reads the JSON header of a file that holds `data_bytes` after it. Every tensor's offsets match
/// its dtype and shape; together they cover the data without overlap or hole. Throws Failure with
/// one sentence that starts with `path`.
std::vector<TensorInfo> parse_safetensors_header(std::string_view json, uint64_t data_bytes,
                                                 const std::string& path);

class SafetensorsReader {
 public:
  /// Throws Failure: no such file, not a regular file, not safetensors, or a header that lies.
  explicit SafetensorsReader(const std::string& path);
  /// The same from memory or any stream of `file_bytes` bytes; `path` is for messages.
  SafetensorsReader(std::unique_ptr<std::istream> stream, uint64_t file_bytes, std::string path);

  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  /// Throws Failure, naming what the file has, when there is no such tensor.
  const TensorInfo& find(const std::string& name) const;
  /// Reads a tensor's bytes; memory grows only by what the file really holds.
  std::vector<std::byte> read(const TensorInfo& tensor);

 private:
  void open();

  std::string path_;
  std::unique_ptr<std::istream> stream_;
  uint64_t file_bytes_ = 0;
  uint64_t data_begin_ = 0;
  std::vector<TensorInfo> tensors_;
};

struct TensorToWrite {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  const void* data;
};
/// Writes the file whole or not at all, and over none of `inputs` (see OutputFile). Throws Failure.
void write_safetensors(const std::string& path, const std::vector<TensorToWrite>& tensors,
                       const std::vector<std::string>& inputs = {});

}  // namespace tsp::cli
