// SPDX-License-Identifier: MIT
// The safetensors reader against headers that lie, and the writer against the reader.
#include "cli/safetensors.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "cli/output_file.h"
#include "cli/verbs.h"

namespace tsp::cli {
namespace {

namespace fs = std::filesystem;

std::string file_of(const std::string& header, uint64_t data_bytes, uint64_t length) {
  std::string bytes(8, '\0');
  for (size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(length >> (8 * i));
  return bytes + header + std::string(data_bytes, '\1');
}
std::string file_of(const std::string& header, uint64_t data_bytes) {
  return file_of(header, data_bytes, header.size());
}

std::vector<TensorInfo> parse(const std::string& bytes) {
  return SafetensorsReader(std::make_unique<std::istringstream>(bytes), bytes.size(), "F")
      .tensors();
}

/// The sentence that a file is refused with; empty when it is accepted.
std::string refusal(const std::string& bytes) {
  try {
    parse(bytes);
    return "";
  } catch (const Failure& failure) {
    EXPECT_EQ(failure.exit_code, kExitFailure);
    EXPECT_EQ(std::string(failure.what()).find('\n'), std::string::npos);
    return failure.what();
  }
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" +
         offsets + "}";
}
std::string one(const std::string& dtype, const std::string& shape, const std::string& offsets,
                uint64_t data_bytes) {
  return file_of("{" + entry("q", dtype, shape, offsets) + "}", data_bytes);
}

#define EXPECT_REFUSED(bytes, part) \
  EXPECT_NE(refusal(bytes).find(part), std::string::npos) << refusal(bytes)

TEST(Safetensors, ReadsShapesDtypesAndIgnoresWhatItDoesNotKnow) {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},)" + entry("b", "BF16", "[2,3]", "[8,20]") + "," +
      R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"note":{"x":1}},)" +
      entry("odd", "F9_NEW", "[7]", "[20,25]") + "}   ";
  const auto tensors = parse(file_of(header, 25));
  ASSERT_EQ(tensors.size(), 3u);
  EXPECT_EQ(tensors[0].name, "a");
  EXPECT_EQ(tensors[1].name, "b");
  EXPECT_EQ(tensors[1].dtype, "BF16");
  EXPECT_EQ(tensors[1].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(tensors[1].begin, 8u);
  EXPECT_EQ(tensors[1].bytes, 12u);
}

TEST(Safetensors, RefusesWhatIsNotSuchAFile) {
  EXPECT_REFUSED("", "it has 0 bytes");
  EXPECT_REFUSED("1234567", "it has 7 bytes");
  EXPECT_REFUSED("GGUFGGUFGGUFGGUF", "beyond the end of the file");
  EXPECT_REFUSED(file_of("", 0), "does not begin with {");
  EXPECT_REFUSED(file_of("  []", 0), "does not begin with {");
  EXPECT_REFUSED(file_of("{\"q\":", 0), "not valid JSON");
  EXPECT_REFUSED(file_of("{\"\xff\":1}", 0), "not valid JSON");
  EXPECT_REFUSED(file_of("{} x", 0), "not valid JSON");
}

// As the format's own loader does, which pads with spaces and takes them in front.
TEST(Safetensors, ReadsPaddingOfSpacesAndNoOther) {
  for (const char* header : {" {}", "\n\t {}", "{}  \n"}) {
    EXPECT_TRUE(parse(file_of(header, 0)).empty()) << header;
  }
  EXPECT_REFUSED(file_of(std::string("{}\0\0", 4), 0), "header is not valid JSON: byte 2 is NUL");
  EXPECT_REFUSED(file_of(std::string("{\0}", 3), 0), "header is not valid JSON: byte 1 is NUL");
  EXPECT_REFUSED(file_of(std::string("{}\0x", 4), 0), "header is not valid JSON: byte 2 is NUL");
}

TEST(Safetensors, MetadataIsTexts) {
  EXPECT_TRUE(parse(file_of(R"({"__metadata__":{"a":"b","":""}})", 0)).empty());
  EXPECT_TRUE(parse(file_of(R"({"__metadata__":null})", 0)).empty());
  EXPECT_REFUSED(file_of(R"({"__metadata__":{"a":null}})", 0),
                 "__metadata__: \"a\" must be a string, got null");
  EXPECT_REFUSED(file_of(R"({"__metadata__":{"a":1}})", 0), "must be a string, got 1");
  EXPECT_REFUSED(file_of(R"({"__metadata__":[]})", 0), "__metadata__ is not a JSON object");
}

TEST(Safetensors, RefusesLengthsThatLie) {
  EXPECT_REFUSED(file_of("{}", 0, 3), "header length 3 is beyond the end of the file (10 bytes)");
  EXPECT_REFUSED(file_of("{}", 0, UINT64_MAX), "beyond the end");
  EXPECT_REFUSED(file_of("{}", 0, uint64_t{1} << 63), "beyond the end");
  EXPECT_REFUSED(file_of("{}", 100, 0), "does not begin with {");
}

TEST(Safetensors, RefusesAHeaderOverTheLimitWithoutReadingIt) {
  const fs::path path = fs::path(testing::TempDir()) / "huge.safetensors";
  std::ofstream(path, std::ios::binary) << file_of("{", 0, 100'000'001);
  fs::resize_file(path, 200'000'000);  // sparse: takes no disk
  try {
    SafetensorsReader reader(path.string());
    FAIL();
  } catch (const Failure& failure) {
    EXPECT_NE(std::string(failure.what()).find("at most 100000000, got 100000001"),
              std::string::npos);
  }
  fs::remove(path);
}

TEST(Safetensors, RefusesShapesThatLie) {
  EXPECT_REFUSED(one("F32", "[-1]", "[0,4]", 4), "whole number >= 0 below 2^63, got -1");
  EXPECT_REFUSED(one("F32", "[1.5]", "[0,4]", 4), "got 1.5");
  EXPECT_REFUSED(one("F32", "[\"1\"]", "[0,4]", 4), "got \"1\"");
  EXPECT_REFUSED(one("F32", "[18446744073709551616]", "[0,4]", 4), "whole number");
  EXPECT_REFUSED(one("F32", "[9223372036854775808]", "[0,4]", 4), "whole number");
  EXPECT_REFUSED(one("F32", "[4294967296,4294967296,4]", "[0,4]", 4), "overflows");
  EXPECT_REFUSED(one("F32", "[4611686018427387905]", "[0,4]", 4), "overflows");
  EXPECT_REFUSED(one("F32", "{}", "[0,4]", 4), "shape must be an array");
  EXPECT_REFUSED(one("F32", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,4]", 4),
                 "at most 16 axes, got 17");
}

TEST(Safetensors, RefusesOffsetsThatLie) {
  EXPECT_REFUSED(one("F32", "[2]", "[0,4]", 4), "hold 4 bytes, but F32 [2] takes 8");
  EXPECT_REFUSED(one("F32", "[1]", "[4,0]", 4), "run backwards");
  EXPECT_REFUSED(one("F32", "[2]", "[0,8]", 4), "beyond the file's data (4 bytes)");
  EXPECT_REFUSED(one("F32", "[1]", "[-4,0]", 4), "data_offsets must be a whole number");
  EXPECT_REFUSED(one("F32", "[1]", "[0]", 4), "must be two numbers");
  EXPECT_REFUSED(one("F32", "[1]", "[4,8]", 8), "leaves a hole");
  EXPECT_REFUSED(one("F32", "[1]", "[0,4]", 8), "end at 4, the data at 8");
  EXPECT_REFUSED(file_of("{" + entry("a", "F32", "[2]", "[0,8]") + "," +
                             entry("b", "F32", "[2]", "[4,12]") + "}",
                         12),
                 "\"b\" overlaps another");
  EXPECT_REFUSED(file_of("{" + entry("a", "F32", "[2]", "[0,8]") + "," +
                             entry("b", "F32", "[2]", "[0,8]") + "}",
                         8),
                 "overlaps another");
}

TEST(Safetensors, RefusesEntriesThatAreNoTensors) {
  EXPECT_REFUSED(file_of(R"({"q":3})", 0), "tensor \"q\" is not a JSON object");
  EXPECT_REFUSED(file_of(R"({"q":{"shape":[],"data_offsets":[0,0]}})", 0), "has no \"dtype\"");
  EXPECT_REFUSED(file_of(R"({"q":{"dtype":"F32","data_offsets":[0,0]}})", 0), "has no \"shape\"");
  EXPECT_REFUSED(file_of(R"({"q":{"dtype":"F32","shape":[0]}})", 0), "has no \"data_offsets\"");
  EXPECT_REFUSED(file_of(R"({"q":{"dtype":3,"shape":[0],"data_offsets":[0,0]}})", 0),
                 "dtype must be a string");
  const std::string q = entry("q", "F32", "[0]", "[0,0]");
  EXPECT_REFUSED(file_of("{" + q + "," + q + "}", 0), "names \"q\" twice");
  EXPECT_REFUSED(
      file_of(R"({"q":{"dtype":"F32","dtype":"F16","shape":[0],"data_offsets":[0,0]}})", 0),
      "names \"dtype\" twice");
  EXPECT_REFUSED(file_of("{\"q\":" + std::string(100000, '[') + std::string(100000, ']') + "}", 0),
                 "nests deeper");
}

TEST(Safetensors, WhatIsWrittenIsReadBack) {
  const fs::path path = fs::path(testing::TempDir()) / "written.safetensors";
  const std::vector<float> x{1, 2, 3, 4, 5, 6};
  const std::vector<int32_t> y{7, 8};
  write_safetensors(path.string(),
                    {{"out", "F32", {1, 2, 3}, x.data()}, {"indices", "I32", {2, 1}, y.data()}});
  SafetensorsReader reader(path.string());
  const TensorInfo out = reader.find("out");
  EXPECT_EQ(out.shape, (std::vector<int64_t>{1, 2, 3}));
  const auto bytes = reader.read(out);
  ASSERT_EQ(bytes.size(), sizeof(float) * x.size());
  EXPECT_EQ(std::memcmp(bytes.data(), x.data(), bytes.size()), 0);
  EXPECT_EQ(reader.read(reader.find("indices")).size(), 8u);
  EXPECT_THROW(reader.find("q"), Failure);
  fs::remove(path);
}

size_t files_in(const fs::path& folder) {
  return static_cast<size_t>(std::distance(fs::directory_iterator(folder), {}));
}

TEST(OutputFile, AFailedWriteLeavesTheOldFileAndNoOther) {
  const fs::path folder = fs::path(testing::TempDir()) / "output_file";
  fs::create_directories(folder);
  const fs::path path = folder / "x";
  std::ofstream(path) << "old";
  // A limit on file size stands in for a full disk: write() fails half-way in the same manner.
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit old_limit;
  getrlimit(RLIMIT_FSIZE, &old_limit);
  const rlimit small{1000, old_limit.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  const std::string big(5000, 'n');
  std::string sentence;
  try {
    OutputFile file(path.string());
    file.write(big.data(), big.size());
    file.commit();
  } catch (const Failure& failure) {
    sentence = failure.what();
  }
  setrlimit(RLIMIT_FSIZE, &old_limit);
  EXPECT_NE(sentence.find("cannot be written: File too large"), std::string::npos) << sentence;
  EXPECT_EQ(fs::file_size(path), 3u);
  EXPECT_EQ(files_in(folder), 1u);
  fs::remove_all(folder);
}

TEST(OutputFile, RefusesWhatItMustNotReplace) {
  EXPECT_THROW(OutputFile("/dev/null"), Failure);
  EXPECT_THROW(OutputFile(testing::TempDir()), Failure);
  EXPECT_THROW(OutputFile("/nowhere/at/all"), Failure);
}

}  // namespace
}  // namespace tsp::cli
