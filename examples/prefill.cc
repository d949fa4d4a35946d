// SPDX-License-Identifier: MIT
// Token sparse attention from C++: exact and sparse on the same tensors, and how far apart they
// are.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "tokensparse/tokensparse.hpp"

namespace {

constexpr int64_t kTokens = 4096, kQueryHeads = 8, kKvHeads = 2, kDim = 64;

std::vector<float> random_floats(int64_t count, uint32_t seed) {
  std::minstd_rand random(seed);
  std::uniform_real_distribution<float> uniform(-2.0f, 2.0f);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = uniform(random);
  return values;
}

void require(const tokensparse::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.message().c_str());
  std::exit(1);
}

}  // namespace

int main() {
  const auto q = random_floats(kTokens * kQueryHeads * kDim, 1);
  const auto k = random_floats(kTokens * kKvHeads * kDim, 2);
  const auto v = random_floats(kTokens * kKvHeads * kDim, 3);
  std::vector<float> exact(q.size()), sparse(q.size());

  // [prefill]
  tokensparse::Context context;
  require(tokensparse::Context::create({}, &context));

  tokensparse::PrefillParams params;
  params.q = tokensparse::view(q.data(), kTokens, kQueryHeads, kDim);
  params.k = tokensparse::view(k.data(), kTokens, kKvHeads, kDim);
  params.v = tokensparse::view(v.data(), kTokens, kKvHeads, kDim);

  params.coverage = 0;  // drop nothing: exact attention
  params.out = tokensparse::view(exact.data(), kTokens, kQueryHeads, kDim);
  require(tokensparse::prefill(context, params));

  int32_t kept = 0;
  params.coverage = 0.1f;              // drop tokens that hold a tenth of the attention, together
  params.share = TSP_SHARE_KV_GROUP;   // the heads of a KV head keep the same tokens
  params.dropped = TSP_DROPPED_LOCAL;  // queries that were left out see their neighbours
  params.sink = 64;                    // and the first tokens
  params.selected.kept = &kept;        // how many; selected.indices would say which
  params.out = tokensparse::view(sparse.data(), kTokens, kQueryHeads, kDim);
  require(tokensparse::prefill(context, params));
  // [/prefill]

  double error = 0, norm = 0;
  const int64_t last = (kTokens - 1) * kQueryHeads * kDim;  // the row that decides the next token
  for (int64_t i = last; i < last + kQueryHeads * kDim; ++i) {
    const auto at = static_cast<size_t>(i);
    error += std::pow(sparse[at] - exact[at], 2);
    norm += std::pow(exact[at], 2);
  }
  std::printf("each set kept %d of %d tokens; the last row moved by %.3f of its norm\n", kept,
              static_cast<int>(kTokens), std::sqrt(error / norm));
}
