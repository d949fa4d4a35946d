// SPDX-License-Identifier: MIT
#include "cli/text_file.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string_view>

#include "cli/verbs.h"

namespace tsp::cli {
namespace {

constexpr std::string_view kUtf8Mark = "\xEF\xBB\xBF";

struct Close {
  void operator()(std::FILE* file) const {
    if (file != stdin) std::fclose(file);
  }
};
using File = std::unique_ptr<std::FILE, Close>;

std::string name_of(const std::string& path) { return path == "-" ? "standard input" : path; }

[[noreturn]] void fail_to_read(const std::string& path, int error) {
  throw Failure("cannot read " + name_of(path) + ": " + std::strerror(error != 0 ? error : EIO));
}

[[noreturn]] void fail_of_size(const std::string& path, const std::string& size, size_t limit) {
  throw Failure(name_of(path) + " is too long a text: it must have at most " +
                std::to_string(limit) + " bytes, got " + size);
}

File open(const std::string& path) {
  File file(path == "-" ? stdin : std::fopen(path.c_str(), "rb"));
  if (file == nullptr) fail_to_read(path, errno);
  return file;
}

/// Up to `limit` bytes.
std::string bytes_of(std::FILE* file, const std::string& path, size_t limit) {
  std::string text;
  while (text.size() < limit) {
    char buffer[1 << 16];
    const size_t wanted = std::min(sizeof buffer, limit - text.size());
    errno = 0;
    const size_t count = std::fread(buffer, 1, wanted, file);
    text.append(buffer, count);
    if (count < wanted && std::ferror(file) != 0) fail_to_read(path, errno);
    if (count < wanted) break;
  }
  return text;
}

/// Bytes of the well-formed UTF-8 character at the start of `text`; 0 where there is none.
size_t character_bytes(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  const size_t length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  // Overlong forms, surrogates, and what is above U+10FFFF.
  const bool wrong = (first == 0xE0 && byte(1) < 0xA0) || (first == 0xED && byte(1) > 0x9F) ||
                     (first == 0xF0 && byte(1) < 0x90) || (first == 0xF4 && byte(1) > 0x8F);
  return wrong ? 0 : length;
}

std::string plain(const std::string& bytes, const std::string& path, std::string* note) {
  std::string_view rest = bytes;
  const std::string_view start = rest.substr(0, 2);
  if (start == "\xFF\xFE" || start == "\xFE\xFF") {
    throw Failure(name_of(path) + " is UTF-16; a text must be UTF-8 (iconv -f UTF-16 -t UTF-8)");
  }
  if (const size_t at = rest.find('\0'); at != std::string_view::npos) {
    throw Failure(name_of(path) + " is not a text: byte " + std::to_string(at) +
                  " is NUL (a text must be UTF-8)");
  }
  if (rest.starts_with(kUtf8Mark)) rest.remove_prefix(kUtf8Mark.size());
  std::string text;
  text.reserve(rest.size());
  size_t odd = 0;
  while (!rest.empty()) {
    const size_t length = character_bytes(rest);
    if (length == 0) {
      const auto latin1 = static_cast<unsigned char>(rest[0]);
      text += static_cast<char>(0xC0 | latin1 >> 6);
      text += static_cast<char>(0x80 | (latin1 & 0x3F));
      ++odd;
    } else if (!rest.starts_with("\r\n")) {
      text += rest.substr(0, length);
    }
    rest.remove_prefix(std::max(length, size_t{1}));
  }
  if (odd > 0 && note != nullptr) {
    *note = name_of(path) + " is not all UTF-8; " + std::to_string(odd) +
            (odd == 1 ? " byte was" : " bytes were") + " read as Latin-1";
  }
  if (text.empty()) throw Failure(name_of(path) + " is empty");
  return text;
}

}  // namespace

std::string read_text(const std::string& path, std::string* note, size_t max_bytes) {
  const File file = open(path);
  struct stat info;
  if (fstat(fileno(file.get()), &info) == 0 && S_ISREG(info.st_mode) &&
      static_cast<uint64_t>(info.st_size) > max_bytes) {
    fail_of_size(path, std::to_string(info.st_size), max_bytes);
  }
  const std::string bytes = bytes_of(file.get(), path, max_bytes + 1);
  if (bytes.size() > max_bytes) fail_of_size(path, "more", max_bytes);
  return plain(bytes, path, note);
}

std::string read_text_start(const std::string& path, size_t bytes) {
  const File file = open(path);
  return plain(whole_characters(bytes_of(file.get(), path, bytes)), path, nullptr);
}

std::string whole_characters(std::string text) {
  size_t start = text.size();
  for (int back = 0; back < 3 && start > 0; ++back) {
    const auto byte = static_cast<unsigned char>(text[--start]);
    if (byte < 0x80) break;
    if (byte < 0xC0) continue;
    const size_t length = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : 2;
    if (start + length > text.size()) text.resize(start);
    break;
  }
  return text;
}

}  // namespace tsp::cli
