// SPDX-License-Identifier: MIT
// Which nodes the adapter takes, on nodes made with ggml's own constructors.
#include "adapters/ggml/attention_node.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "ggml.h"

namespace tsp::ggml_adapter {
namespace {

struct Shape {
  int64_t rows = 64, k_len = 100, heads = 4, kv_heads = 2, k_dim = 32, v_dim = 32, streams = 1;
  ggml_type k_type = GGML_TYPE_F16, v_type = GGML_TYPE_F16;
  float max_bias = 0, soft_cap = 0;
  bool mask = true;
};

/// An attention node over zeros, with a causal mask.
class Node {
 public:
  explicit Node(const Shape& shape) {
    ctx_.reset(ggml_init({.mem_size = 32u << 20, .mem_buffer = nullptr, .no_alloc = false}));
    const int64_t n_kv = 256;
    ggml_tensor* q = tensor(GGML_TYPE_F32, shape.k_dim, shape.rows, shape.heads, shape.streams);
    ggml_tensor* k = tensor(shape.k_type, shape.k_dim, n_kv, shape.kv_heads, shape.streams);
    ggml_tensor* v = tensor(shape.v_type, shape.v_dim, n_kv, shape.kv_heads, shape.streams);
    ggml_tensor* mask = nullptr;
    if (shape.mask) {
      mask = tensor(GGML_TYPE_F16, n_kv, shape.rows, 1, shape.streams);
      auto* values = static_cast<ggml_fp16_t*>(mask->data);
      for (int64_t i = 0; i < n_kv * shape.rows * shape.streams; ++i) {
        const int64_t row = i / n_kv % shape.rows, key = i % n_kv;
        values[i] = key <= shape.k_len - shape.rows + row ? 0 : 0xFC00;
      }
    }
    node_ = ggml_flash_attn_ext(ctx_.get(), q, k, v, mask, 0.1f, shape.max_bias, shape.soft_cap);
  }
  ggml_tensor* get() { return node_; }
  ggml_context* ctx() { return ctx_.get(); }

 private:
  struct Free {
    void operator()(ggml_context* ctx) const { ggml_free(ctx); }
  };
  ggml_tensor* tensor(ggml_type type, int64_t a, int64_t b, int64_t c, int64_t d) {
    return ggml_set_zero(ggml_new_tensor_4d(ctx_.get(), type, a, b, c, d));
  }
  std::unique_ptr<ggml_context, Free> ctx_;
  ggml_tensor* node_;
};

class AttentionNode : public testing::Test {
 protected:
  AttentionNode() {
    tsp_context_options_t options;
    tsp_context_options_init(&options, sizeof options);
    options.num_threads = 1;
    EXPECT_EQ(tsp_context_create(&options, &ctx_), TSP_OK) << tsp_last_error();
    server_ = std::make_unique<AttentionServer>(ctx_, Options());
  }
  ~AttentionNode() override { tsp_context_destroy(ctx_); }

  Refusal check(const Shape& shape) {
    Node node(shape);
    const Refusal refusal = server_->check(*node.get());
    const auto& refused = server_->no_layer().refused;
    EXPECT_EQ(refused[static_cast<size_t>(refusal)], refusal == Refusal::kNone ? 0 : 1)
        << refusal_text(refusal);
    server_->reset_stats();
    return refusal;
  }

  tsp_context_t* ctx_ = nullptr;
  std::unique_ptr<AttentionServer> server_;
};

TEST_F(AttentionNode, TakesWhatItCanServe) {
  EXPECT_EQ(check({}), Refusal::kNone);
  EXPECT_EQ(check({.rows = 100}), Refusal::kNone);
  EXPECT_EQ(check({.heads = 7, .kv_heads = 1, .k_dim = 80, .v_dim = 80}), Refusal::kNone);
  EXPECT_EQ(check({.k_type = GGML_TYPE_F32, .v_type = GGML_TYPE_F32}), Refusal::kNone);
  EXPECT_EQ(check({.k_type = GGML_TYPE_BF16, .v_type = GGML_TYPE_BF16}), Refusal::kNone);
  EXPECT_EQ(check({.streams = 2}), Refusal::kNone);
}

TEST_F(AttentionNode, NamesWhatItLeaves) {
  EXPECT_EQ(check({.rows = 63}), Refusal::kShortChunk);
  EXPECT_EQ(check({.rows = 1}), Refusal::kShortChunk);
  EXPECT_EQ(check({.k_type = GGML_TYPE_Q8_0, .v_type = GGML_TYPE_Q8_0}), Refusal::kKvType);
  EXPECT_EQ(check({.k_type = GGML_TYPE_F16, .v_type = GGML_TYPE_F32}), Refusal::kKvType);
  EXPECT_EQ(check({.k_dim = 64, .v_dim = 32}), Refusal::kHeadDims);
  EXPECT_EQ(check({.soft_cap = 30}), Refusal::kSoftCap);
  EXPECT_EQ(check({.max_bias = 8}), Refusal::kAlibi);
  EXPECT_EQ(check({.mask = false}), Refusal::kNoMask);
  EXPECT_EQ(check({.rows = 100, .k_len = 60}), Refusal::kMask) << "rows that see nothing";
}

TEST_F(AttentionNode, LeavesSinks) {
  Node node({});
  ggml_flash_attn_ext_add_sinks(node.get(), ggml_new_tensor_1d(node.ctx(), GGML_TYPE_F32, 4));
  EXPECT_EQ(server_->check(*node.get()), Refusal::kSinks);
}

TEST_F(AttentionNode, LeavesAMaskThatIsStillToBeComputed) {
  Node node({});
  ggml_tensor*& mask = node.get()->src[3];
  mask = ggml_cast(node.ctx(), mask, GGML_TYPE_F16);
  EXPECT_EQ(server_->check(*node.get()), Refusal::kMaskNotReady);
}

TEST_F(AttentionNode, ReadsTheLayerFromTheCacheName) {
  const auto layer = [](const char* name) {
    Node node({});
    ggml_tensor* cache = node.get()->src[1];
    ggml_set_name(cache, name);
    node.get()->src[1] = ggml_view_tensor(node.ctx(), cache);
    return layer_of(*node.get());
  };
  EXPECT_EQ(layer("cache_k_l0"), 0);
  EXPECT_EQ(layer("cache_k_l27"), 27);
  EXPECT_EQ(layer("cache_dsv4_k_l12"), 12);
  EXPECT_EQ(layer("cache_v_l12"), -1);
  EXPECT_EQ(layer("k_l12"), -1);
  EXPECT_EQ(layer("cache_k_lx"), -1);
  Node plain({});
  EXPECT_EQ(layer_of(*plain.get()), -1);
}

TEST_F(AttentionNode, IgnoresOtherOperations) {
  Node node({});
  EXPECT_EQ(server_->check(*node.get()->src[0]), Refusal::kNotAttention);
  EXPECT_EQ(server_->no_layer().refused[static_cast<size_t>(Refusal::kNotAttention)], 0);
}

TEST_F(AttentionNode, ReadsNoKeyBeyondTheMask) {
  Node node({});
  auto* k = static_cast<ggml_fp16_t*>(node.get()->src[1]->data);
  auto* v = static_cast<ggml_fp16_t*>(node.get()->src[2]->data);
  for (int64_t head = 0; head < 2; ++head) {
    for (int64_t key = 0; key < 256; ++key) {
      for (int64_t d = 0; d < 32; ++d) {
        const int64_t at = (head * 256 + key) * 32 + d;
        k[at] = v[at] = key < 100 ? 0x3C00 : 0x7E00;  // 1.0; NaN in the padding
      }
    }
  }
  ASSERT_EQ(server_->check(*node.get()), Refusal::kNone);
  ASSERT_EQ(server_->serve(*node.get()), TSP_OK) << tsp_last_error();
  const auto* out = static_cast<const float*>(node.get()->data);
  for (int64_t i = 0; i < ggml_nelements(node.get()); ++i) ASSERT_NEAR(out[i], 1, 1e-6);
}

/// A node of layer `layer` over values that differ from token to token.
void fill(Node& node, int32_t layer) {
  ggml_tensor* attention = node.get();
  for (int source = 0; source < 3; ++source) {
    ggml_tensor* tensor = attention->src[source];
    for (int64_t i = 0; i < ggml_nelements(tensor); ++i) {
      const float value = static_cast<float>((i * 37 + source * 11) % 101) / 50 - 1;
      if (tensor->type == GGML_TYPE_F32) {
        static_cast<float*>(tensor->data)[i] = value;
      } else {
        static_cast<ggml_fp16_t*>(tensor->data)[i] = ggml_fp32_to_fp16(value);
      }
    }
  }
  ggml_tensor* cache = attention->src[1];
  ggml_set_name(cache, ("cache_k_l" + std::to_string(layer)).c_str());
  attention->src[1] = ggml_view_tensor(node.ctx(), cache);
}

/// Its result, over memory of NaN.
std::vector<float> result_of(AttentionServer& server, ggml_tensor& node) {
  auto* out = static_cast<float*>(node.data);
  std::vector<float> result(static_cast<size_t>(ggml_nelements(&node)), NAN);
  std::copy(result.begin(), result.end(), out);
  EXPECT_EQ(server.check(node), Refusal::kNone);
  EXPECT_EQ(server.serve(node), TSP_OK) << tsp_last_error();
  return std::copy(out, out + result.size(), result.begin()), result;
}

TEST_F(AttentionNode, AttendsInTheLastLayerForTheRowsThatAreRead) {
  Options options;
  options.num_layers = 3;
  const size_t row = 4 * 32;
  for (const int32_t layer : {1, 2}) {
    Node node({.rows = 80});
    fill(node, layer);
    AttentionServer whole(ctx_, options);
    const std::vector<float> expected = result_of(whole, *node.get());
    for (const int32_t read : {0, 1, 3, 80, 90, -1}) {
      AttentionServer server(ctx_, options);
      server.set_rows_read(read);
      const std::vector<float> got = result_of(server, *node.get());
      const size_t unread = layer == 2 && read >= 0 && read < 80 ? 80 - size_t(read) : 0;
      for (size_t i = 0; i < got.size(); ++i) {
        ASSERT_EQ(got[i], i < unread * row ? 0 : expected[i]) << layer << ' ' << read << ' ' << i;
      }
      const auto stats = [layer](const AttentionServer& of) { return of.layers()[size_t(layer)]; };
      EXPECT_EQ(stats(server).served_rows, 80);
      EXPECT_EQ(stats(server).pairs, stats(whole).pairs);
      EXPECT_EQ(stats(server).kept, stats(whole).kept);
    }
  }
}

TEST_F(AttentionNode, AttendsByTheBlocksOfTheSettingInTheLayersThatItNames) {
  Options options;
  options.num_layers = 3;
  options.setting.min_keys = 0;
  options.setting.min_rows = 2;
  tsp_pattern_t& pattern = options.setting.op.pattern;
  tsp_pattern_init(&pattern, TSP_PATTERN_XATTENTION);
  pattern.block = 32;
  pattern.stride = 4;
  pattern.threshold = 0.3f;
  tsp_context_options_t reference_options;
  tsp_context_options_init(&reference_options, sizeof reference_options);
  reference_options.backend = TSP_BACKEND_REF;
  tsp_context_t* reference = nullptr;
  ASSERT_EQ(tsp_context_create(&reference_options, &reference), TSP_OK);
  for (const float coverage : {0.0f, 0.3f}) {  // every token, and blocks of those that are kept
    options.setting.op.coverage = coverage;
    options.setting.op.window = 16;
    options.setting.op.min_tokens = 32;
    Node node({.rows = 200, .k_len = 240});
    fill(node, 1);
    AttentionServer server(ctx_, options), expected(reference, options), exact(ctx_, Options());
    const std::vector<float> out = result_of(server, *node.get());
    const std::vector<float> wanted = result_of(expected, *node.get());
    const std::vector<float> dense = result_of(exact, *node.get());
    double difference = 0, from_dense = 0;
    for (size_t i = 0; i < out.size(); ++i) {
      difference = std::max(difference, double{std::fabs(out[i] - wanted[i])});
      from_dense = std::max(from_dense, double{std::fabs(out[i] - dense[i])});
    }
    EXPECT_LT(difference, 1e-5);
    EXPECT_GT(from_dense, 1e-3);
    const LayerStats& stats = server.layers()[1];
    EXPECT_EQ(stats.pairs, expected.layers()[1].pairs);
    EXPECT_TRUE(stats.pairs_share() > 0.1 && stats.pairs_share() < 0.8) << stats.pairs_share();
    EXPECT_EQ(stats.sparse, 1);
    EXPECT_EQ(stats.kept == stats.keys, coverage == 0);
    Node first({.rows = 200, .k_len = 240});
    fill(first, 0);
    EXPECT_EQ(result_of(server, *first.get()), result_of(exact, *first.get()));
    EXPECT_EQ(server.layers()[0].pairs_share(), 1);
  }
  tsp_context_destroy(reference);
}

TEST_F(AttentionNode, AttendsForAllRowsWhereTheSettingNamesTheLastLayer) {
  Options options;
  options.setting = Setting();
  options.setting.layers = {LayerChoice::Kind::kAll, {}};
  options.num_layers = 3;
  Node node({.rows = 80});
  fill(node, 2);
  AttentionServer server(ctx_, options);
  server.set_rows_read(1);
  EXPECT_NE(result_of(server, *node.get())[0], 0);
}

TEST_F(AttentionNode, AMaskIsReadOnceAGraph) {
  Node node(Shape{});
  auto* mask = static_cast<ggml_fp16_t*>(node.get()->src[3]->data);
  const auto check_with = [&](ggml_fp16_t first) {
    mask[0] = first;  // 1.0: a mask that is not served
    return server_->check(*node.get());
  };
  EXPECT_EQ(check_with(0), Refusal::kNone);
  EXPECT_EQ(check_with(0x3C00), Refusal::kMask) << "nobody said that graphs begin";
  server_->begin_graph();
  EXPECT_EQ(check_with(0), Refusal::kNone);
  EXPECT_EQ(check_with(0x3C00), Refusal::kNone) << "as it was";
  server_->begin_graph();
  EXPECT_EQ(server_->check(*node.get()), Refusal::kMask);
  server_->begin_graph();
  EXPECT_EQ(check_with(0), Refusal::kNone);
  Node other(Shape{.rows = 66, .k_len = 90});
  EXPECT_EQ(server_->check(*other.get()), Refusal::kNone);
  static_cast<ggml_fp16_t*>(other.get()->src[3]->data)[0] = 0x3C00;
  EXPECT_EQ(check_with(0x3C00), Refusal::kMask) << "another mask was read since";
}

}  // namespace
}  // namespace tsp::ggml_adapter
