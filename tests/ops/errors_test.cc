// SPDX-License-Identifier: MIT
// Bad input through the C ABI: one sentence that names the argument, the rule and the value.
#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <limits>

#include "core/context.h"
#include "tests/support/problem.h"

namespace tsp::test {
namespace {

/// A valid call of 8 tokens, 4 / 2 heads, D 16, that each test spoils in one place.
class Errors : public ::testing::Test {
 protected:
  Errors() {
    EXPECT_TRUE(tokensparse::Context::create(options(), &ctx).ok());
    p.q = tokensparse::view(q.data(), 8, 4, 16);
    p.k = tokensparse::view(k.data(), 8, 2, 16);
    p.v = tokensparse::view(v.data(), 8, 2, 16);
    p.out = tokensparse::view(out.data(), 8, 4, 16);
    p.selected = {indices.data(), &kept, 4, 0, 8, 32};
    p.window = 2;
    p.min_tokens = 0;
    p.keep = 0.5f;
  }
  static tokensparse::ContextOptions options() {
    tokensparse::ContextOptions o;
    o.backend = TSP_BACKEND_REF;
    return o;
  }
  void expect(const std::function<void(tokensparse::PrefillParams&)>& spoil, const char* sentence,
              tsp_status_t code = TSP_INVALID_ARGUMENT) {
    tokensparse::PrefillParams bad = p;
    spoil(bad);
    const auto status = tokensparse::prefill(ctx, bad);
    EXPECT_EQ(status.code(), code);
    EXPECT_EQ(status.message(), sentence);
    const auto after = tokensparse::prefill(ctx, p);
    EXPECT_TRUE(after.ok()) << "the context must stay usable: " << after.message();
  }

  std::vector<float> q = std::vector<float>(8 * 4 * 16, 0.5f);
  std::vector<float> k = std::vector<float>(8 * 2 * 16, 0.5f);
  std::vector<float> v = k;
  std::vector<float> out = q;
  std::vector<int32_t> indices = std::vector<int32_t>(32);
  int32_t kept = 0;
  tokensparse::Context ctx;
  tokensparse::PrefillParams p;
};

TEST_F(Errors, NameTheTensorTheRuleAndTheValue) {
  expect([](auto& b) { b.q.data = nullptr; }, "q.data: must not be null");
  expect([](auto& b) { b.q.dtype = 9; }, "q.dtype: must be TSP_F32, TSP_F16 or TSP_BF16, got 9");
  expect([](auto& b) { b.k.heads = 3; }, "k.heads: must divide the query heads (4), got 3");
  expect([](auto& b) { b.k.dim = 8; }, "k.dim: must equal the head dim of q (16), got 8");
  expect([](auto& b) { b.v.dtype = TSP_F16; }, "v.dtype: must be f32 as k, got f16");
  expect([](auto& b) { b.v.tokens = 7; }, "v.tokens: must be 8 as k, got 7");
  expect([](auto& b) { b.out.tokens = 7; }, "out: must be [8, 4, D] as q, got [7, 4, D]");
  expect([](auto& b) { b.q.tokens = -1; }, "q.tokens: must be between 0 and 2^30, got -1");
  expect([](auto& b) { b.k.token_stride = -32; },
         "k.token_stride: must be between 0 and 2^44 elements, got -32");
  expect([](auto& b) { b.k.heads = int64_t{1} << 40; },
         "k.heads: must be between 1 and 16384, got 1099511627776");
  expect([](auto& b) { b.q.dim = 0; }, "q.dim: must be between 1 and 16384, got 0");
  expect([](auto& b) { b.out.token_stride = 0; },
         "out.token_stride: must not be 0 along an axis longer than 1, got 0");
}

TEST_F(Errors, NameTheOption) {
  expect([](auto& b) { b.coverage = 1; }, "coverage: must be in [0, 1), got 1");
  expect([](auto& b) { b.coverage = std::numeric_limits<float>::quiet_NaN(); },
         "coverage: must be in [0, 1), got nan");
  expect([](auto& b) { b.keep = -0.5f; }, "keep: must be in [0, 1] (0 = use coverage), got -0.5");
  expect([](auto& b) { b.window = 0; }, "window: must be between 1 and 1048576, got 0");
  expect([](auto& b) { b.pool = 4; }, "pool: must be odd and between 1 and 1023, got 4");
  expect([](auto& b) { b.min_tokens = -1; },
         "min_tokens: must be between 0 and 1073741824, got -1");
  expect([](auto& b) { b.share = 3; }, "share: must be between 0 and 2, got 3");
  expect([](auto& b) { b.dropped = -1; }, "dropped: must be between 0 and 1, got -1");
  expect([](auto& b) { b.band = 0; }, "band: must be between 1 and 1073741824, got 0");
  expect([](auto& b) { b.sink = -1; }, "sink: must be between 0 and 1073741824, got -1");
  expect([](auto& b) { b.when = 2; }, "when: must be between 0 and 1, got 2");
  expect([](auto& b) { b.reserved2 = 3; }, "reserved2: must be 0, got 3");
  expect([](auto& b) { b.batch.reserved = 3; }, "batch.reserved: must be 0, got 3");
  expect([](auto& b) { b.selected.reserved = 3; }, "selected.reserved: must be 0, got 3");
  expect([](auto& b) { b.precision = 7; }, "precision: must be between 0 and 1, got 7");
  expect([](auto& b) { b.scale = -1; }, "scale: must be finite and >= 0 (0 = 1/sqrt(D)), got -1");
  expect([](auto& b) { b.selected.num_sets = 2; },
         "selected.num_sets: must be 4 for this share, got 2");
  expect([](auto& b) { b.selected.set_stride = 7; },
         "selected.set_stride: must be at least the longest Tk (8), got 7");
}

TEST_F(Errors, NameTheSequence) {
  const int32_t q_offsets[] = {0, 3, 8}, k_offsets[] = {0, 2, 8}, short_offsets[] = {0, 3, 7};
  const int32_t empty_offsets[] = {0, 0, 8}, falling_offsets[] = {0, 9, 8};
  expect(
      [&](auto& b) {
        b.batch = {q_offsets, k_offsets, 2, 0};
        b.selected.indices = nullptr;
        b.selected.kept = nullptr;
      },
      "sequence 0: must not have more queries (Tq = 3) than keys (Tk = 2)");
  expect(
      [&](auto& b) {
        b.batch = {short_offsets, q_offsets, 2, 0};
      },
      "batch.q_offsets: must end at the rows of q (8), got 7");
  expect(
      [&](auto& b) {
        b.batch = {empty_offsets, q_offsets, 2, 0};
      },
      "sequence 1: must not have more queries (Tq = 8) than keys (Tk = 5)");
  expect(
      [&](auto& b) {
        b.batch = {falling_offsets, falling_offsets, 2, 0};
      },
      "batch.q_offsets: must ascend, got -1 rows of sequence 1");
  expect(
      [&](auto& b) {
        b.batch = {nullptr, q_offsets, 2, 0};
      },
      "batch.q_offsets: must not be null with num_seqs = 2");
  expect([](auto& b) { b.k.tokens = b.v.tokens = 5; },
         "sequence 0: must not have more queries (Tq = 8) than keys (Tk = 5)");
  expect([](auto& b) { b.batch.num_seqs = -1; },
         "batch.num_seqs: must be between 0 and 2^20, got -1");
  const int32_t table[] = {0, 1}, one[] = {0, 8};
  expect(
      [&](auto& b) {
        b.k.block_table = b.v.block_table = table;
        b.k.block_size = b.v.block_size = 4;
        b.k.table_stride = b.v.table_stride = 1;
        b.batch = {one, one, 1, 0};
      },
      "k.table_stride: sequence 0 needs 2 blocks, got 1");
  const int32_t hole[] = {0, -1};
  expect(
      [&](auto& b) {
        b.k.block_table = b.v.block_table = hole;
        b.k.block_size = b.v.block_size = 4;
        b.k.table_stride = b.v.table_stride = 2;
        b.batch = {one, one, 1, 0};
      },
      "k.block_table: must name a block for every token; sequence 0, block 1 is -1");
}

TEST_F(Errors, NameTheWorkspace) {
  size_t bytes = 0;
  ASSERT_EQ(tsp_prefill_workspace(ctx.get(), &p, &bytes), TSP_OK);
  const Backend host{"ref", TSP_BACKEND_REF, "", nullptr};
  const Bytes memory(host, bytes + 64);
  const std::string needed =
      "workspace: must hold " + std::to_string(bytes) + " bytes, got " + std::to_string(bytes - 1);
  expect(
      [&](auto& b) {
        b.workspace = memory.data();
        b.workspace_bytes = bytes - 1;
      },
      needed.c_str());
  tokensparse::PrefillParams bad = p;
  bad.workspace = memory.as<char>() + 8;
  bad.workspace_bytes = bytes;
  EXPECT_EQ(tokensparse::prefill(ctx, bad).message().substr(0, 42),
            "workspace: must be 64-byte aligned, got 0x");
}

TEST_F(Errors, NameOutputsThatOverlap) {
  const auto expect_overlap = [&](const std::function<void(tokensparse::PrefillParams&)>& spoil,
                                  const std::string& sentence) {
    tokensparse::PrefillParams bad = p;
    spoil(bad);
    const auto status = tokensparse::prefill(ctx, bad);
    EXPECT_EQ(status.code(), TSP_INVALID_ARGUMENT);
    EXPECT_EQ(status.message().substr(0, sentence.size()), sentence);
  };
  std::vector<float> lse(8 * 4);
  expect_overlap([](auto& b) { b.out = b.q; }, "out: must not overlap q, got memory at 0x");
  expect_overlap([](auto& b) { b.q = b.out; }, "out: must not overlap q");
  expect_overlap([&](auto& b) { b.k.data = out.data() + 511; }, "out: must not overlap k");
  expect_overlap([&](auto& b) { b.v.data = out.data() + 8; }, "out: must not overlap v");
  expect_overlap([&](auto& b) { b.lse = tokensparse::view(out.data() + 100, 8, 4, 1); },
                 "out: must not overlap lse");
  expect_overlap(
      [&](auto& b) { b.selected.indices = reinterpret_cast<int32_t*>(out.data() + 500); },
      "out: must not overlap selected.indices");
  expect_overlap([&](auto& b) { b.selected.kept = indices.data() + 31; },
                 "selected.indices: must not overlap selected.kept");
  expect_overlap([](auto& b) { b.out.token_stride = 63; },
                 "out: its elements must not overlap each other, got strides 63, 16, 1");
  std::vector<int32_t> lists(64);
  for (size_t i = 1; i < lists.size(); i += 8) lists[i] = 7;
  int32_t count = 2;
  p.given = {lists.data(), &count, 4, 0, 8, 32};
  expect_overlap([&](auto& b) { b.selected.indices = lists.data() + 8; },
                 "selected.indices: must not overlap given.indices");
  p.selected = p.given;  // in place
  EXPECT_TRUE(tokensparse::prefill(ctx, p).ok());
}

TEST_F(Errors, ServeViewsThatInterleave) {
  const auto before = tokensparse::prefill(ctx, p);
  ASSERT_TRUE(before.ok()) << before.message();
  // One tensor of [8, 12, 16], token-major and head-major: q, k, v and out are heads of it.
  for (const bool head_major : {false, true}) {
    std::vector<float> fused(8 * 12 * 16, 0.5f);
    const auto heads = [&](int64_t first, int64_t count) {
      tsp_tensor_t view = tokensparse::view(fused.data(), 8, 12, 16);
      if (head_major) view = tokensparse::head_major(view);
      view.data = fused.data() + first * view.head_stride;
      view.heads = count;
      return view;
    };
    tokensparse::PrefillParams fine = p;
    fine.q = heads(0, 4);
    fine.out = heads(4, 4);
    fine.k = heads(8, 2);
    fine.v = heads(10, 2);
    auto status = tokensparse::prefill(ctx, fine);
    EXPECT_TRUE(status.ok()) << status.message();
    // The first tokens of it and the last.
    std::vector<float> twice(16 * 4 * 16, 0.5f);
    fine.q = tokensparse::view(twice.data(), 16, 4, 16);
    if (head_major) fine.q = tokensparse::head_major(fine.q);
    fine.q.tokens = 8;
    fine.out = fine.q;
    fine.out.data = twice.data() + 8 * fine.q.token_stride;
    status = tokensparse::prefill(ctx, fine);
    EXPECT_TRUE(status.ok()) << status.message();
    fine.out.data = twice.data() + 7 * fine.q.token_stride;
    EXPECT_EQ(tokensparse::prefill(ctx, fine).message().substr(0, 23), "out: must not overlap q");
  }
}

TEST_F(Errors, NameTheOutputsOfEveryOpThatOverlap) {
  const auto refused = [](const tokensparse::Status& status, const std::string& sentence) {
    EXPECT_EQ(status.message().substr(0, sentence.size()), sentence);
  };
  tokensparse::ScoreParams score;
  score.q = p.q;
  score.k = p.k;
  score.window = 2;
  score.scores = tokensparse::view(k.data() + 40, 6, 4, 1);
  refused(tokensparse::score(ctx, score), "scores: must not overlap k");
  tokensparse::SelectParams select;
  std::vector<float> scores(24);
  select.scores = tokensparse::view(scores.data(), 6, 4, 1);
  select.window = 2;
  select.q_len = select.k_len = 8;
  select.num_kv_heads = 2;
  select.selected = p.selected;
  select.selected.kept = reinterpret_cast<int32_t*>(scores.data() + 23);
  refused(tokensparse::select(ctx, select), "selected.kept: must not overlap scores");
  for (size_t i = 0; i < indices.size(); i += 8) indices[i + 1] = 7;
  kept = 2;
  tokensparse::AttendParams attend;
  attend.q = p.q;
  attend.k = p.k;
  attend.v = p.v;
  attend.out = p.v;
  attend.out.heads = 4;
  attend.out.token_stride = 64;
  refused(tokensparse::attend(ctx, attend), "out: must not overlap");
  tokensparse::CompressParams compress;
  compress.q = p.q;
  compress.k = p.k;
  compress.v = p.v;
  compress.q_out = p.out;
  std::vector<float> k_out(k.size() * 2), v_out(k_out);
  compress.k_out = tokensparse::view(k_out.data(), 8, 4, 16);
  compress.v_out = compress.k_out;
  compress.selected = p.selected;
  refused(tokensparse::compress(ctx, compress), "k_out: must not overlap v_out");
  compress.v_out = tokensparse::view(v_out.data(), 8, 4, 16);
  refused(tokensparse::compress(ctx, compress), "");
  tokensparse::DecompressParams decompress;
  decompress.k_len = 8;
  decompress.in = p.out;
  decompress.out = p.out;
  decompress.selected = p.selected;
  refused(tokensparse::decompress(ctx, decompress), "out: must not overlap in");
}

TEST_F(Errors, NameTheGivenSets) {
  std::vector<int32_t> lists(32);
  int32_t count = 2;
  for (size_t i = 0; i < lists.size(); i += 8) lists[i + 1] = 7;
  p.given = {lists.data(), &count, 4, 0, 8, 32};
  expect([](auto& b) { b.given.kept = nullptr; }, "given.kept: must not be null with indices");
  expect([](auto& b) { b.given.num_sets = 3; },
         "given.num_sets: must be Hq (4), Hkv (2) or 1, got 3");
  expect([](auto& b) { b.given.num_sets = 1; },
         "selected.num_sets: must be 1 for the given sets, got 4");
  expect([](auto& b) { b.given.set_stride = 7; },
         "given.set_stride: must be at least the longest Tk (8), got 7");
  int32_t none = 0;
  expect([&](auto& b) { b.given.kept = &none; },
         "given.kept[0]: must be between 1 and Tk (8), got 0");
  std::vector<int32_t> bad = lists;
  bad[9] = 8;
  expect([&](auto& b) { b.given.indices = bad.data(); },
         "given.indices: must ascend within 0 .. Tk - 1 (7); sequence 0, set 1, entry 1 is 8 after "
         "0");
}

TEST_F(Errors, NameTheIndexThatIsOutOfOrder) {
  tokensparse::AttendParams a;
  a.q = p.q;
  a.k = p.k;
  a.v = p.v;
  a.out = p.out;
  a.selected = p.selected;
  const auto sentence = [&](int32_t count, std::initializer_list<int32_t> list) {
    kept = count;
    for (int set = 0; set < 4; ++set) {
      std::copy(list.begin(), list.end(), indices.begin() + set * 8);
    }
    return tokensparse::attend(ctx, a).message();
  };
  EXPECT_EQ(sentence(3, {1, 5, 7}), "");
  EXPECT_EQ(sentence(3, {1, 7, 5}),
            "selected.indices: must ascend within 0 .. Tk - 1 (7); sequence 0, set 0, entry 2 is 5 "
            "after 7");
  EXPECT_EQ(sentence(3, {1, 1, 5}),
            "selected.indices: must ascend within 0 .. Tk - 1 (7); sequence 0, set 0, entry 1 is 1 "
            "after 1");
  EXPECT_EQ(sentence(3, {1, 5, 8}),
            "selected.indices: must ascend within 0 .. Tk - 1 (7); sequence 0, set 0, entry 2 is 8 "
            "after 5");
  EXPECT_EQ(sentence(3, {-1, 5, 7}),
            "selected.indices: must ascend within 0 .. Tk - 1 (7); sequence 0, set 0, entry 0 is "
            "-1 after -1");
  EXPECT_EQ(sentence(9, {1, 5, 7}), "selected.kept[0]: must be between 1 and Tk (8), got 9");
  EXPECT_EQ(sentence(0, {1, 5, 7}), "selected.kept[0]: must be between 1 and Tk (8), got 0");
}

TEST_F(Errors, NameTheOpThatABackendLeavesOut) {
  const OpTable* const whole = ctx.get()->ops;
  OpTable none = *whole;
  none.score = nullptr;
  none.select = nullptr;
  none.compress = nullptr;
  none.attend = nullptr;
  none.decompress = nullptr;
  const auto expect_refused = [](tsp_status_t status, const std::string& name) {
    EXPECT_EQ(status, TSP_UNSUPPORTED);
    EXPECT_EQ(tsp_last_error(), name + ": backend ref does not have this operation");
  };
  ctx.get()->ops = &none;
  size_t bytes = 0;
  const tokensparse::ScoreParams score;
  const tokensparse::SelectParams select;
  const tokensparse::CompressParams compress;
  const tokensparse::AttendParams attend;
  const tokensparse::DecompressParams decompress;
  expect_refused(tsp_score(ctx.get(), &score), "score");
  expect_refused(tsp_select_workspace(ctx.get(), &select, &bytes), "select");
  expect_refused(tsp_compress(ctx.get(), &compress), "compress");
  expect_refused(tsp_attend_workspace(ctx.get(), &attend, &bytes), "attend");
  expect_refused(tsp_decompress(ctx.get(), &decompress), "decompress");
  expect_refused(tsp_prefill(ctx.get(), &p), "score");
  ctx.get()->ops = whole;
  EXPECT_TRUE(tokensparse::prefill(ctx, p).ok());
}

TEST_F(Errors, NameWhatATallyCannotBe) {
  alignas(8) std::array<int64_t, 3> tally{};
  tokensparse::PrefillParams bad = p;
  bad.tally = reinterpret_cast<int64_t*>(reinterpret_cast<char*>(tally.data()) + 4);
  EXPECT_EQ(tokensparse::prefill(ctx, bad).message().substr(0, 36),
            "tally: must be aligned to 8 bytes, g");
  bad.tally = reinterpret_cast<int64_t*>(out.data());
  EXPECT_EQ(tokensparse::prefill(ctx, bad).message().substr(0, 27), "out: must not overlap tally");
  EXPECT_EQ(tally, (std::array<int64_t, 3>{}));
}

TEST_F(Errors, NameAShapeThatCannotPay) {
  int32_t pays = 7;
  const auto error = [&](int32_t rows, int32_t keys, int32_t heads, int32_t dim) {
    EXPECT_EQ(tsp_prefill_pays(ctx.get(), rows, keys, heads, dim, &pays), TSP_INVALID_ARGUMENT);
    return std::string(tsp_last_error());
  };
  EXPECT_EQ(error(65, 64, 4, 64), "rows: must be between 0 and keys (64), got 65");
  EXPECT_EQ(error(-1, 64, 4, 64), "rows: must be between 0 and keys (64), got -1");
  EXPECT_EQ(error(64, 64, 0, 64), "q_heads: must be positive, got 0");
  EXPECT_EQ(error(64, 64, 4, -2), "head_dim: must be positive, got -2");
  EXPECT_EQ(pays, 7);
  EXPECT_EQ(tsp_prefill_pays(ctx.get(), 64, 64, 4, 64, &pays), TSP_OK);
  EXPECT_EQ(pays, 1) << "on the host what is chosen decides";
}

TEST_F(Errors, NameWhatIsNull) {
  EXPECT_EQ(tsp_prefill_pays(ctx.get(), 64, 64, 4, 64, nullptr), TSP_INVALID_ARGUMENT);
  EXPECT_STREQ(tsp_last_error(), "pays: must not be null");
  EXPECT_EQ(tsp_prefill(ctx.get(), nullptr), TSP_INVALID_ARGUMENT);
  EXPECT_STREQ(tsp_last_error(), "params: must not be null");
  EXPECT_EQ(tsp_prefill(nullptr, &p), TSP_INVALID_ARGUMENT);
  EXPECT_STREQ(tsp_last_error(), "ctx: must not be null");
}

TEST(ContextErrors, AForcedPathIsThatPathOrAnError) {
  tokensparse::Context ctx;
  tokensparse::ContextOptions o;
  o.isa = "sse1";
  EXPECT_EQ(tokensparse::Context::create(o, &ctx).code(), TSP_UNAVAILABLE);
  EXPECT_EQ(std::string(tsp_last_error()), std::string("isa: must be one this machine has (") +
                                               tsp_cpu_isas() + "), got \"sse1\"");
  for (const Backend& backend : all_backends()) {
    if (backend.backend != TSP_BACKEND_CPU) continue;
    EXPECT_EQ(backend.open().isa(), backend.isa);
    EXPECT_EQ(backend.open().backend(), "cpu");
  }
  o = {};
  o.num_threads = -2;
  EXPECT_EQ(tokensparse::Context::create(o, &ctx).message(),
            "num_threads: must be between 0 and 1024, got -2");
  o = {};
  o.backend = 17;
  EXPECT_EQ(tokensparse::Context::create(o, &ctx).message(),
            "backend: must be between 0 and 2, got 17");
}

TEST(ContextErrors, WithoutAGpuCudaIsUnavailableAndTheCpuServes) {
  if (!cuda_backends().empty()) GTEST_SKIP() << "there is a GPU";
  tokensparse::Context ctx;
  tokensparse::ContextOptions o;
  o.backend = TSP_BACKEND_CUDA;
  const auto status = tokensparse::Context::create(o, &ctx);
  EXPECT_EQ(status.code(), TSP_UNAVAILABLE);
  EXPECT_NE(status.message().find("cuda"), std::string::npos) << status.message();
  EXPECT_TRUE(tokensparse::Context::create({}, &ctx).ok());
}

}  // namespace
}  // namespace tsp::test
