// SPDX-License-Identifier: MIT
// The fixture of a test body that runs once on every backend, with `backend` and `ctx` at hand.

#pragma once

#include <gtest/gtest.h>

#include "tests/support/problem.h"

namespace tsp::test {

class OpTest : public ::testing::TestWithParam<Backend> {
 protected:
  const Backend& backend = GetParam();
  tokensparse::Context ctx = backend.open();

  /// Runs what CUDA may refuse; then by the name of the argument.
  template <typename Body>
  void served_or_refused(const std::string& name, Body&& body) {
    try {
      body();
    } catch (const std::runtime_error& e) {
      EXPECT_TRUE(backend.is_cuda()) << e.what();
      EXPECT_EQ(std::string(e.what()).substr(0, name.size()), name);
    }
  }
};

inline std::string backend_name(const ::testing::TestParamInfo<Backend>& info) {
  return info.param.name;
}

}  // namespace tsp::test

#define TSP_INSTANTIATE_ON_ALL_BACKENDS(Suite)                                        \
  INSTANTIATE_TEST_SUITE_P(, Suite, ::testing::ValuesIn(::tsp::test::all_backends()), \
                           ::tsp::test::backend_name)
