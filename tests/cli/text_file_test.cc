// SPDX-License-Identifier: MIT
// Texts as people have them: what is read, what is noted, what is refused.
#include "cli/text_file.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "cli/verbs.h"
#include "tests/support/temporary_folder.h"

namespace tsp::cli {
namespace {

namespace fs = std::filesystem;
using std::string_literals::operator""s;

class TextFile : public testing::Test {
 protected:
  const std::string& file_of(const std::string& bytes) const {
    std::ofstream(path_, std::ios::binary) << bytes;
    return path_;
  }
  std::string read(const std::string& bytes) {
    note_.clear();
    return read_text(file_of(bytes), &note_);
  }
  std::string why_not(const std::string& bytes, size_t max_bytes = kMaxTextBytes) const {
    try {
      read_text(file_of(bytes), nullptr, max_bytes);
    } catch (const Failure& failure) {
      return failure.what();
    }
    return "read";
  }

  const test::TemporaryFolder temporary_;
  const fs::path& folder_ = temporary_.path();
  const std::string path_ = (folder_ / "text.txt").string();
  std::string note_;
};

TEST_F(TextFile, Utf8IsReadAsItIs) {
  for (const std::string text : {"a", "caf\u00e9 \u4e2d\u6587 \U0001F600\n", "\x7f\x01\t\rx"}) {
    EXPECT_EQ(read(text), text);
    EXPECT_EQ(note_, "");
  }
}

TEST_F(TextFile, AMarkAndLineEndsOfWindowsAreDropped) {
  EXPECT_EQ(read("\xEF\xBB\xBF"
                 "one\r\ntwo\r\n\r\nthree\r"),
            "one\ntwo\n\nthree\r");
  EXPECT_EQ(note_, "");
}

TEST_F(TextFile, OtherBytesAreLatin1AndNoted) {
  EXPECT_EQ(read("caf\xE9 cr\xE8me"), "caf\u00e9 cr\u00e8me");
  EXPECT_EQ(note_, path_ + " is not all UTF-8; 2 bytes were read as Latin-1");
  EXPECT_EQ(read("caf\u00e9 \xFF"), "caf\u00e9 \u00ff");
  EXPECT_EQ(note_, path_ + " is not all UTF-8; 1 byte was read as Latin-1");
  // Overlong, a surrogate, above U+10FFFF, cut off, a lone continuation.
  for (const std::string odd : {"\xC0\xAF", "\xE0\x80\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80",
                                "\xF5\x80\x80\x80", "\xE4\xB8", "\x80"}) {
    read(odd);
    EXPECT_EQ(note_.find(path_ + " is not all UTF-8; " + std::to_string(odd.size()) + " byte"), 0u)
        << note_;
  }
}

TEST_F(TextFile, WhatIsNoTextIsRefused) {
  EXPECT_EQ(why_not("\xFF\xFEh\0i\0"s).find(path_ + " is UTF-16; a text must be UTF-8"), 0u);
  EXPECT_EQ(why_not("\xFE\xFF\0h\0i"s).find(path_ + " is UTF-16; a text must be UTF-8"), 0u);
  EXPECT_EQ(why_not("h\0i\0"s), path_ + " is not a text: byte 1 is NUL (a text must be UTF-8)");
  EXPECT_EQ(why_not(""), path_ + " is empty");
  EXPECT_EQ(why_not("\xEF\xBB\xBF"), path_ + " is empty");
}

TEST_F(TextFile, ALongOneIsRefusedBeforeItIsRead) {
  EXPECT_EQ(why_not("12345", 5), "read");
  EXPECT_EQ(why_not("123456", 5),
            path_ + " is too long a text: it must have at most 5 bytes, got 6");
  file_of("x");
  const uint64_t sizes[] = {(uint64_t{4} << 30) + 2000, (uint64_t{2} << 30) + 100};
  for (const uint64_t size : sizes) {
    fs::resize_file(path_, size);  // takes no room: it is a hole
    try {
      read_text(path_);
      ADD_FAILURE() << "read";
    } catch (const Failure& failure) {
      EXPECT_EQ(failure.what(), path_ + " is too long a text: it must have at most 1073741824 " +
                                    "bytes, got " + std::to_string(size));
    }
    EXPECT_EQ(read_text_start(path_, 1), "x");
  }
  EXPECT_THROW(read_text("/dev/zero", nullptr, 1000), Failure);
}

TEST_F(TextFile, AStartEndsWithAWholeCharacter) {
  const std::string text = "a\u00e9\u4e2d\U0001F600z";  // 1, 2, 3, 4 and 1 bytes
  const size_t whole[] = {1, 1, 3, 3, 3, 6, 6, 6, 6, 10, 11, 11};
  for (size_t bytes = 1; bytes <= 12; ++bytes) {
    const std::string start = read_text_start(file_of(text), bytes);
    EXPECT_EQ(start, text.substr(0, whole[bytes - 1])) << bytes;
  }
}

TEST_F(TextFile, SaysWhyAFileCannotBeRead) {
  EXPECT_THROW(read_text("/no/such/file"), Failure);
  EXPECT_THROW(read_text(folder_.string()), Failure);
  EXPECT_THROW(read_text_start(folder_.string(), 10), Failure);
}

}  // namespace
}  // namespace tsp::cli
