// SPDX-License-Identifier: MIT
// Params structs grow: what a caller built against an older or a newer header gets.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "tests/support/problem.h"

namespace tsp::test {
namespace {

/// One params struct: where it ended in ABI 1, how it is filled, and a call that reads it. The call
/// fails on whatever the rest of an all-default struct lacks, after its size was accepted.
struct StructCase {
  std::string name;
  size_t abi_1;
  size_t now;
  std::function<void(void*, uint32_t)> init;
  std::function<tsp_status_t(tsp_context_t*, const void*)> call;
};
void PrintTo(const StructCase& c, std::ostream* out) { *out << c.name; }

template <typename Params>
StructCase op_case(const char* name, size_t abi_1, void (*init)(Params*, uint32_t),
                   tsp_status_t (*op)(tsp_context_t*, const Params*)) {
  return {
      name, abi_1, sizeof(Params),
      [init](void* p, uint32_t size) { init(static_cast<Params*>(p), size); },
      [op](tsp_context_t* ctx, const void* p) { return op(ctx, static_cast<const Params*>(p)); }};
}

/// The bytes of ABI 1 stand here as numbers: they hold for good, whatever the headers become.
std::vector<StructCase> structs() {
  StructCase options = {"context_options", 48, sizeof(tsp_context_options_t),
                        [](void* p, uint32_t size) {
                          tsp_context_options_init(static_cast<tsp_context_options_t*>(p), size);
                        },
                        [](tsp_context_t*, const void* p) {
                          tsp_context_t* created = nullptr;
                          const tsp_status_t status = tsp_context_create(
                              static_cast<const tsp_context_options_t*>(p), &created);
                          tsp_context_destroy(created);
                          return status;
                        }};
  return {options,
          op_case("score", 328, tsp_score_params_init, tsp_score),
          op_case("select", 208, tsp_select_params_init, tsp_select),
          op_case("compress", 600, tsp_compress_params_init, tsp_compress),
          op_case("attend", 544, tsp_attend_params_init, tsp_attend),
          op_case("decompress", 248, tsp_decompress_params_init, tsp_decompress),
          op_case("estimate", 432, tsp_estimate_params_init, tsp_estimate),
          op_case("prefill", 568, tsp_prefill_params_init, tsp_prefill)};
}

class Abi : public ::testing::TestWithParam<StructCase> {
 protected:
  Abi() {
    tokensparse::ContextOptions o;
    o.backend = TSP_BACKEND_REF;
    o.num_threads = 1;
    EXPECT_TRUE(tokensparse::Context::create(o, &ctx).ok());
  }
  /// The call with a struct of exactly `size` bytes, as its caller's init filled it; null when its
  /// size and extra bytes were accepted, whatever was wrong after.
  std::string refusal(size_t size, size_t set_byte = 0) {
    std::vector<uint64_t> words((size + 7) / 8);  // exact for the address sanitizer, and aligned
    c.init(words.data(), static_cast<uint32_t>(size));
    if (set_byte != 0) reinterpret_cast<unsigned char*>(words.data())[set_byte] = 1;
    const tsp_status_t status = c.call(ctx.get(), words.data());
    const std::string message = status == TSP_OK ? "" : tsp_last_error();
    return message.starts_with("params") ? message : "";
  }
  const StructCase& c = GetParam();
  tokensparse::Context ctx;
};

TEST_P(Abi, AnOlderCallerIsServed) {
  ASSERT_LE(c.abi_1, c.now);
  for (size_t size = c.abi_1; size <= c.now; size += 8) EXPECT_EQ(refusal(size), "") << size;
}

TEST_P(Abi, ANewerCallerIsServedUnlessItSetsWhatIsNotKnown) {
  for (const size_t more : {8u, 64u, 1024u}) {
    EXPECT_EQ(refusal(c.now + more), "");
    for (const size_t byte : {c.now, c.now + more - 1}) {
      const std::string message = refusal(c.now + more, byte);
      EXPECT_NE(message.find("byte " + std::to_string(byte) + " of tsp_" + c.name),
                std::string::npos)
          << message;
    }
  }
}

TEST_P(Abi, AnImpossibleSizeIsRefused) {
  for (const size_t size : {size_t{4}, c.abi_1 - 8, c.abi_1 + 4, size_t{65544}}) {
    const std::string message = refusal(size);
    EXPECT_NE(message.find("params.struct_size: must be sizeof(tsp_" + c.name), std::string::npos)
        << message;
    EXPECT_NE(message.find("got " + std::to_string(size)), std::string::npos) << message;
  }
}

TEST_P(Abi, InitWritesWhatTheCallerHasAndNoMore) {
  std::vector<unsigned char> whole(c.now);
  c.init(whole.data(), static_cast<uint32_t>(c.now));
  for (const size_t size : {size_t{0}, size_t{4}, size_t{8}, c.abi_1, c.now, c.now + 32}) {
    std::vector<unsigned char> bytes(c.now + 64, 0xa5);
    c.init(bytes.data(), static_cast<uint32_t>(size));
    for (size_t i = 0; i < bytes.size(); ++i) {
      const unsigned char inside = i < 4       ? static_cast<unsigned char>(size >> (8 * i))
                                   : i < c.now ? whole[i]
                                               : 0;
      ASSERT_EQ(bytes[i], i < size ? inside : 0xa5) << "byte " << i << " of " << size;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, Abi, ::testing::ValuesIn(structs()),
                         [](const auto& tested) { return tested.param.name; });

TEST(AbiOfPrefill, WhatAnOlderCallerLacksIsZero) {
  const Backend ref = all_backends().front();
  tokensparse::Context ctx = ref.open();
  std::vector<float> q(8 * 2 * 4, 0.5f), kv(8 * 4, 0.25f), out(q.size()), again(q.size());
  tokensparse::PrefillParams p;
  p.q = tokensparse::view(q.data(), 8, 2, 4);
  p.k = p.v = tokensparse::view(kv.data(), 8, 1, 4);
  p.out = tokensparse::view(out.data(), 8, 2, 4);
  p.window = 2;
  p.min_tokens = 0;
  p.keep = 0.5f;
  p.workspace_bytes = size_t{1} << 16;
  const Bytes workspace(ref, p.workspace_bytes);
  p.workspace = workspace.data();
  ASSERT_EQ(tsp_prefill(ctx.get(), &p), TSP_OK);
  p.out.data = again.data();
  p.struct_size = 568;
  p.when = 77;  // behind the caller's struct: not read
  p.given.indices = reinterpret_cast<int32_t*>(8);
  EXPECT_EQ(tsp_prefill(ctx.get(), &p), TSP_OK) << tsp_last_error();
  EXPECT_EQ(out, again);
  EXPECT_EQ(tsp_abi_version(), static_cast<uint32_t>(TSP_ABI_VERSION));
}

}  // namespace
}  // namespace tsp::test
