// SPDX-License-Identifier: MIT
// A fuzz target is the libFuzzer entry point plus inputs to start from. Built twice: with clang's
// libFuzzer for a long search, and with loop.cc for a short search that is the same every time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

/// Inputs that reach deep into the code; loop.cc mutates them.
std::vector<std::string> fuzz_seeds();

/// After the last input of the loop: prints what was reached; false when that is too little for the
/// search to mean anything.
bool fuzz_reached_enough();
