// SPDX-License-Identifier: MIT
// A fuzzer for where libFuzzer is not: mutates a target's seeds, the same way on every run.
// usage: TARGET [ITERATIONS [SEED]]
#include <cstdio>
#include <cstdlib>
#include <random>

#include "tests/fuzz/fuzz.h"

namespace {

using Random = std::mt19937_64;

size_t below(Random& random, size_t bound) { return bound == 0 ? 0 : random() % bound; }

void mutate(Random& random, const std::vector<std::string>& seeds, std::string& input) {
  static const std::string kTokens[] = {
      "0",   "-1",  "9223372036854775807", "18446744073709551616", "[", "]", "{", "}", "\"", ",",
      "1e9", "null"};
  const size_t at = below(random, input.size() + 1);
  switch (below(random, 8)) {
    case 0:
      if (!input.empty()) input[at % input.size()] ^= static_cast<char>(1 << below(random, 8));
      break;
    case 1:
      if (!input.empty()) input[at % input.size()] = static_cast<char>(random());
      break;
    case 2:
      input.insert(at, 1, static_cast<char>(random()));
      break;
    case 3:
      input.erase(at, 1 + below(random, 8));
      break;
    case 4:
      input.insert(at, kTokens[below(random, std::size(kTokens))]);
      break;
    case 5:
      input.replace(at, below(random, 6), kTokens[below(random, std::size(kTokens))]);
      break;
    case 6: {
      const std::string& other = seeds[below(random, seeds.size())];
      const size_t from = below(random, other.size() + 1);
      input.insert(at, other.substr(from, below(random, 64)));
      break;
    }
    case 7:
      input.resize(at);
      break;
  }
}

}  // namespace

int main(int argc, char** argv) {
  const long iterations = argc > 1 ? std::atol(argv[1]) : 20000;
  const long seed = argc > 2 ? std::atol(argv[2]) : 1;
  const std::vector<std::string> seeds = fuzz_seeds();
  for (const std::string& input : seeds) {
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
  }
  for (long i = 0; i < iterations; ++i) {
    Random random(static_cast<uint64_t>(seed) * 1'000'003u + static_cast<uint64_t>(i));
    std::string input = seeds[below(random, seeds.size())];
    for (size_t n = 1 + below(random, 6); n > 0; --n) mutate(random, seeds, input);
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
  }
  std::printf("%ld inputs from %zu seeds, none crashed\n", iterations, seeds.size());
  return fuzz_reached_enough() ? 0 : 1;
}
