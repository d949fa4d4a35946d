// SPDX-License-Identifier: MIT
#include "cli/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "adapters/ggml/repeated_key.h"
#include "cli/output_file.h"
#include "cli/verbs.h"

namespace tsp::cli {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr int kMaxDepth = 4;                       // tensor entries nest twice
constexpr size_t kMaxRank = 16;

constexpr std::array<std::pair<std::string_view, uint64_t>, 15> kDtypes{{
    {"F64", 8},
    {"F32", 4},
    {"F16", 2},
    {"BF16", 2},
    {"I64", 8},
    {"U64", 8},
    {"I32", 4},
    {"U32", 4},
    {"I16", 2},
    {"U16", 2},
    {"I8", 1},
    {"U8", 1},
    {"F8_E4M3", 1},
    {"F8_E5M2", 1},
    {"BOOL", 1},
}};

uint64_t decode_u64(const unsigned char* bytes) {
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | bytes[i];
  return value;
}

/// Parses strictly: no key twice in an object, no deep nesting.
Json parse_json(std::string_view text, const std::string& path) {
  RepeatedKey<Json> keys;
  const auto callback = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > kMaxDepth) throw Failure(path + ": header nests deeper than the format allows");
    keys.see(event, parsed);
    if (keys.found().has_value()) {
      throw Failure(path + ": header names " + Json(*keys.found()).dump(-1, ' ', true) + " twice");
    }
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), callback);
  } catch (const Json::exception&) {
    throw Failure(path + ": header is not valid JSON");
  }
}

/// A whole number >= 0 that fits int64; nothing else in JSON is a size.
int64_t size_from(const Json& value, const std::string& what) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() > uint64_t{INT64_MAX}) {
    throw Failure(what + " must be a whole number >= 0 below 2^63, got " +
                  value.dump(-1, ' ', true).substr(0, 40));
  }
  return value.get<int64_t>();
}

const Json& member(const Json& entry, const char* key, const std::string& what) {
  const auto found = entry.find(key);
  if (found == entry.end()) throw Failure(what + " has no \"" + key + "\"");
  return *found;
}

TensorInfo parse_entry(const std::string& name, const Json& entry, uint64_t data_bytes,
                       const std::string& path) {
  const std::string what = path + ": tensor " + Json(name).dump(-1, ' ', true).substr(0, 80);
  if (!entry.is_object()) throw Failure(what + " is not a JSON object");
  TensorInfo tensor;
  tensor.name = name;
  const Json& dtype = member(entry, "dtype", what);
  if (!dtype.is_string()) throw Failure(what + ": dtype must be a string");
  tensor.dtype = dtype.get<std::string>();

  const Json& shape = member(entry, "shape", what);
  if (!shape.is_array()) throw Failure(what + ": shape must be an array");
  if (shape.size() > kMaxRank) {
    throw Failure(what + ": shape must have at most " + std::to_string(kMaxRank) + " axes, got " +
                  std::to_string(shape.size()));
  }
  const uint64_t element_bytes = safetensors_dtype_bytes(tensor.dtype);
  uint64_t expected = element_bytes;
  bool overflow = false;
  for (const Json& axis : shape) {
    tensor.shape.push_back(size_from(axis, what + ": shape"));
    overflow |=
        __builtin_mul_overflow(expected, static_cast<uint64_t>(tensor.shape.back()), &expected);
  }
  if (overflow) throw Failure(what + ": shape " + shape_text(tensor.shape) + " overflows 2^64");

  const Json& offsets = member(entry, "data_offsets", what);
  if (!offsets.is_array() || offsets.size() != 2) {
    throw Failure(what + ": data_offsets must be two numbers");
  }
  tensor.begin = static_cast<uint64_t>(size_from(offsets[0], what + ": data_offsets"));
  const auto end = static_cast<uint64_t>(size_from(offsets[1], what + ": data_offsets"));
  const std::string range =
      "data_offsets [" + std::to_string(tensor.begin) + ", " + std::to_string(end) + "]";
  if (tensor.begin > end) throw Failure(what + ": " + range + " run backwards");
  if (end > data_bytes) {
    throw Failure(what + ": " + range + " reach beyond the file's data (" +
                  std::to_string(data_bytes) + " bytes): the file is cut off, or the header lies");
  }
  tensor.bytes = end - tensor.begin;
  if (element_bytes != 0 && tensor.bytes != expected) {
    throw Failure(what + ": " + range + " hold " + std::to_string(tensor.bytes) + " bytes, but " +
                  tensor.dtype + " " + shape_text(tensor.shape) + " takes " +
                  std::to_string(expected));
  }
  return tensor;
}

/// Texts under names, or null.
void check_metadata(const Json& metadata, const std::string& path) {
  if (metadata.is_null()) return;
  if (!metadata.is_object()) throw Failure(path + ": __metadata__ is not a JSON object");
  for (const auto& [name, value] : metadata.items()) {
    if (value.is_string()) continue;
    throw Failure(path + ": __metadata__: " + Json(name).dump(-1, ' ', true).substr(0, 80) +
                  " must be a string, got " + value.dump(-1, ' ', true).substr(0, 40));
  }
}

/// The data is used once and completely, as the format demands.
void check_layout(std::vector<TensorInfo>& tensors, uint64_t data_bytes, const std::string& path) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(a.begin, a.bytes) < std::pair(b.begin, b.bytes);
  });
  uint64_t end = 0;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.begin != end) {
      throw Failure(path + ": tensor " + Json(tensor.name).dump(-1, ' ', true).substr(0, 80) +
                    (tensor.begin < end ? " overlaps another" : " leaves a hole before it") +
                    ": it begins at " + std::to_string(tensor.begin) +
                    ", the tensor before it ends at " + std::to_string(end));
    }
    end += tensor.bytes;
  }
  if (end != data_bytes) {
    throw Failure(path + ": the tensors end at " + std::to_string(end) + ", the data at " +
                  std::to_string(data_bytes));
  }
}

}  // namespace

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t axis : shape) text += (text.empty() ? "" : ", ") + std::to_string(axis);
  return "[" + text + "]";
}

uint64_t safetensors_dtype_bytes(std::string_view dtype) {
  for (const auto& [name, bytes] : kDtypes) {
    if (name == dtype) return bytes;
  }
  return 0;
}

std::vector<TensorInfo> parse_safetensors_header(std::string_view json, uint64_t data_bytes,
                                                 const std::string& path) {
  const size_t start = json.find_first_not_of(" \t\r\n");
  if (start == std::string_view::npos || json[start] != '{') {
    throw Failure(path + ": header does not begin with {: not a safetensors file");
  }
  // NOTE: the parser takes a NUL for the end of the text, and what follows would not be read.
  if (const size_t at = json.find('\0'); at != std::string_view::npos) {
    throw Failure(path + ": header is not valid JSON: byte " + std::to_string(at) + " is NUL");
  }
  const Json header = parse_json(json, path);
  std::vector<TensorInfo> tensors;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      check_metadata(entry, path);
    } else {
      tensors.push_back(parse_entry(name, entry, data_bytes, path));
    }
  }
  check_layout(tensors, data_bytes, path);
  return tensors;
}

SafetensorsReader::SafetensorsReader(const std::string& path) : path_(path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) throw Failure(path + ": no such file");
  if (!std::filesystem::is_regular_file(status)) throw Failure(path + ": is not a regular file");
  file_bytes_ = std::filesystem::file_size(path, error);
  stream_ = std::make_unique<std::ifstream>(path, std::ios::binary);
  if (error || !*stream_) throw Failure(path + ": cannot be read: " + std::strerror(errno));
  open();
}

SafetensorsReader::SafetensorsReader(std::unique_ptr<std::istream> stream, uint64_t file_bytes,
                                     std::string path)
    : path_(std::move(path)), stream_(std::move(stream)), file_bytes_(file_bytes) {
  open();
}

void SafetensorsReader::open() {
  unsigned char length_bytes[kLengthBytes];
  if (file_bytes_ < kLengthBytes) {
    throw Failure(path_ + ": not a safetensors file: it has " + std::to_string(file_bytes_) +
                  " bytes, the header's length alone takes 8");
  }
  stream_->read(reinterpret_cast<char*>(length_bytes), sizeof length_bytes);
  const uint64_t header_bytes = decode_u64(length_bytes);
  if (header_bytes > file_bytes_ - kLengthBytes) {
    throw Failure(path_ + ": header length " + std::to_string(header_bytes) +
                  " is beyond the end of the file (" + std::to_string(file_bytes_) +
                  " bytes): the file is cut off, or not safetensors");
  }
  if (header_bytes > kMaxHeaderBytes) {
    throw Failure(path_ + ": header length must be at most " + std::to_string(kMaxHeaderBytes) +
                  ", got " + std::to_string(header_bytes));
  }
  std::string header(header_bytes, '\0');
  stream_->read(header.data(), static_cast<std::streamsize>(header_bytes));
  if (!*stream_) throw Failure(path_ + ": cannot be read");
  data_begin_ = kLengthBytes + header_bytes;
  tensors_ = parse_safetensors_header(header, file_bytes_ - data_begin_, path_);
}

const TensorInfo& SafetensorsReader::find(const std::string& name) const {
  for (const TensorInfo& tensor : tensors_) {
    if (tensor.name == name) return tensor;
  }
  std::string names;
  for (size_t i = 0; i < tensors_.size() && i < 8; ++i) {
    names += (i == 0 ? "" : ", ") + Json(tensors_[i].name).dump(-1, ' ', true).substr(0, 40);
  }
  if (tensors_.size() > 8) names += ", ...";
  throw Failure(path_ + ": has no tensor \"" + name + "\"; it has " +
                (names.empty() ? "none" : names));
}

std::vector<std::byte> SafetensorsReader::read(const TensorInfo& tensor) {
  std::vector<std::byte> bytes(tensor.bytes);
  stream_->seekg(static_cast<std::streamoff>(data_begin_ + tensor.begin));
  stream_->read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(tensor.bytes));
  if (!*stream_) throw Failure(path_ + ": cannot be read: it changed while it was open");
  return bytes;
}

void write_safetensors(const std::string& path, const std::vector<TensorToWrite>& tensors,
                       const std::vector<std::string>& inputs) {
  Json header = Json::object();
  uint64_t end = 0;
  std::vector<uint64_t> sizes;
  for (const TensorToWrite& tensor : tensors) {
    uint64_t bytes = safetensors_dtype_bytes(tensor.dtype);
    for (const int64_t axis : tensor.shape) bytes *= static_cast<uint64_t>(axis);
    sizes.push_back(bytes);
    header[tensor.name] = {
        {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {end, end + bytes}}};
    end += bytes;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');  // data aligned to 8, as readers like it
  OutputFile file(path, inputs);
  unsigned char length[kLengthBytes];
  for (size_t i = 0; i < kLengthBytes; ++i) {
    length[i] = static_cast<unsigned char>(text.size() >> (8 * i));
  }
  file.write(length, sizeof length);
  file.write(text.data(), text.size());
  for (size_t i = 0; i < tensors.size(); ++i) file.write(tensors[i].data, sizes[i]);
  file.commit();
}

}  // namespace tsp::cli
