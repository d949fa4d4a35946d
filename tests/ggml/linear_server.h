// SPDX-License-Identifier: MIT
// A server of linear layers, and the error of one product by it.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "adapters/ggml/linear_node.h"
#include "tests/ggml/product_node.h"

namespace tsp::test {

inline std::unique_ptr<ggml_adapter::LinearServer> make_server(
    const ggml_adapter::LinearOptions& options) {
  std::string why;
  auto server = ggml_adapter::LinearServer::create(options, why);
  EXPECT_NE(server, nullptr) << why;
  return server;
}

inline double error_of(ProductNode& node, ggml_adapter::LinearServer& server, int64_t step = 1) {
  EXPECT_EQ(server.check(*node.get()), ggml_adapter::LinearRefusal::kNone);
  EXPECT_TRUE(server.serve(*node.get()));
  return node.error(step);
}

}  // namespace tsp::test
