// SPDX-License-Identifier: MIT
// Any bytes as a safetensors file: refused with one sentence, or every tensor can be read.
#include <cstdio>
#include <cstdlib>
#include <sstream>

#include "cli/safetensors.h"
#include "cli/verbs.h"
#include "tests/fuzz/fuzz.h"

namespace {

long accepted = 0, refused = 0;

std::string file_of(const std::string& header, const std::string& data) {
  std::string bytes(8, '\0');
  for (size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(header.size() >> (8 * i));
  return bytes + header + data;
}

}  // namespace

std::vector<std::string> fuzz_seeds() {
  const std::string q = R"("q":{"dtype":"F32","shape":[2,1,2],"data_offsets":[0,16]})";
  const std::string k = R"("k":{"dtype":"BF16","shape":[2,1,2],"data_offsets":[16,24]})";
  return {file_of("{}", ""), file_of("{" + q + "}", std::string(16, 'x')),
          file_of("{" + q + "," + k + "}  ", std::string(24, 'x')),
          file_of(R"({"__metadata__":{"a":"b"},)" + q + "}", std::string(16, 'x')),
          // Without the length: the JSON alone, so that mutations need not repair it.
          "{" + q + "," + k + "}"};
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  const std::string as_header = file_of(bytes, std::string(24, 'y'));
  for (const std::string& file : {bytes, as_header}) {
    try {
      tsp::cli::SafetensorsReader reader(std::make_unique<std::istringstream>(file), file.size(),
                                         "fuzz");
      uint64_t total = 0;
      for (const auto& tensor : reader.tensors()) total += reader.read(tensor).size();
      if (total > file.size()) std::abort();
      ++accepted;
    } catch (const tsp::cli::Failure& failure) {
      if (std::string(failure.what()).empty()) std::abort();
      ++refused;
    }
  }
  return 0;
}

bool fuzz_reached_enough() {
  std::printf("%ld files accepted, %ld refused\n", accepted, refused);
  return accepted > 100 && refused > 100;
}
