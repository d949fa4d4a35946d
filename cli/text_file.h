// SPDX-License-Identifier: MIT
// Texts that people have: UTF-8 with and without a byte order mark, line ends of Windows, Latin-1.
#pragma once

#include <cstddef>
#include <string>

namespace tsp::cli {

/// A prompt of more than this would not fit llama.cpp's 32-bit lengths.
constexpr size_t kMaxTextBytes = size_t{1} << 30;

/// The whole text as UTF-8, without a byte order mark, lines ending in LF; "-" reads standard
/// input. Bytes that are not UTF-8 are taken for Latin-1, and `note` (where not null) says so.
/// Throws Failure where the file is missing, not readable, empty, larger than `max_bytes`, or no
/// text: UTF-16, or with a NUL in it.
std::string read_text(const std::string& path, std::string* note = nullptr,
                      size_t max_bytes = kMaxTextBytes);

/// The same of the first `bytes` at most, whatever the file's size.
std::string read_text_start(const std::string& path, size_t bytes);

/// `text` without the first bytes of a character that its end cuts off.
std::string whole_characters(std::string text);

}  // namespace tsp::cli
