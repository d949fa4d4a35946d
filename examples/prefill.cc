// SPDX-License-Identifier: MIT
// Token sparse attention from C++: a prompt of 4,096 tokens, 8 query heads on 2 KV heads.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "tokensparse/tokensparse.hpp"

namespace {

std::vector<float> random_tensor(size_t size, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(size);
  for (float& value : values) value = normal(generator);
  return values;
}

}  // namespace

int main() {
  constexpr int64_t kTokens = 4096, kQHeads = 8, kKvHeads = 2, kDim = 64;
  const auto q = random_tensor(kTokens * kQHeads * kDim, 1);
  const auto k = random_tensor(kTokens * kKvHeads * kDim, 2);
  const auto v = random_tensor(kTokens * kKvHeads * kDim, 3);
  std::vector<float> out(q.size());

  // [prefill]
  tokensparse::Context ctx;
  if (auto status = tokensparse::Context::create({}, &ctx); !status.ok()) {
    std::fprintf(stderr, "%s\n", status.message().c_str());
    return 1;
  }
  int32_t kept = 0;
  tokensparse::PrefillParams p;
  p.q = tokensparse::view(q.data(), kTokens, kQHeads, kDim);
  p.k = tokensparse::view(k.data(), kTokens, kKvHeads, kDim);
  p.v = tokensparse::view(v.data(), kTokens, kKvHeads, kDim);
  p.out = tokensparse::view(out.data(), kTokens, kQHeads, kDim);
  p.coverage = 0.05f;  // drop the tokens that hold the last 5 % of the attention
  p.selected.kept = &kept;
  if (auto status = tokensparse::prefill(ctx, p); !status.ok()) {
    std::fprintf(stderr, "%s\n", status.message().c_str());
    return 1;
  }
  std::printf("kept %d of %d tokens on %s\n", kept, static_cast<int>(kTokens), ctx.isa().c_str());
  // [/prefill]

  for (const float value : out) {
    if (!std::isfinite(value)) return 1;
  }
  return kept > 1024 && kept < kTokens ? 0 : 1;
}
