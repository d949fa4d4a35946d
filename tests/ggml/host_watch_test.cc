// SPDX-License-Identifier: MIT
// How many layers the model of each context has, from what the host asks about.
#include "adapters/ggml/plugin/host_watch.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <deque>
#include <map>

#include "adapters/ggml/attention_shape.h"

namespace tsp::ggml_plugin {
namespace {

/// A model in the host, as its graphs show it: one matrix and one cache a layer.
class HostModel {
 public:
  HostModel(HostWatch& watch, int layers, const char* matrix, bool asks_of_weights = true)
      : watch_(watch), layers_(layers), asks_of_weights_(asks_of_weights) {
    for (int layer = 0; layer < layers; ++layer) {
      name(weights_.emplace_back(), "blk.%d.%s.weight", layer, matrix);
      weights_.back().data = &weights_.back();
    }
  }

  /// The host asks about everything of a context while it makes it.
  int64_t make_context() {
    const int64_t context = watch_.made_context();
    auto& cache = caches_[context];
    for (int layer = 0; layer < layers_; ++layer) {
      name(cache.emplace_back(), "cache_k_l%d", layer);
    }
    decode(context);
    return context;
  }
  /// The host asks about tensors that stand for the weights to come.
  void load() {
    for (ggml_tensor weights : weights_) {
      weights.data = nullptr;
      ask(weights);
    }
  }
  void decode(int64_t context) {
    if (asks_of_weights_) {
      for (const ggml_tensor& weights : weights_) ask(weights);
    }
    for (ggml_tensor& cache : caches_[context]) {
      ggml_tensor q{}, keys{}, node{};
      q.ne[1] = 512;
      keys.view_src = &cache;
      node.op = GGML_OP_FLASH_ATTN_EXT;
      node.src[ggml_adapter::kQ] = &q;
      node.src[ggml_adapter::kK] = &keys;
      watch_.asked(node);
    }
  }

 private:
  static void name(ggml_tensor& tensor, const char* format, int layer, const char* matrix = "") {
    std::snprintf(tensor.name, sizeof tensor.name, format, layer, matrix);
  }
  void ask(const ggml_tensor& weights) {
    ggml_tensor node{};
    node.op = GGML_OP_MUL_MAT;
    node.src[0] = const_cast<ggml_tensor*>(&weights);
    watch_.asked(node);
  }

  HostWatch& watch_;
  int layers_;
  bool asks_of_weights_;
  std::deque<ggml_tensor> weights_;
  std::map<int64_t, std::deque<ggml_tensor>> caches_;
};

TEST(HostWatch, ADraftThatDecodesAfterItsModelWasAskedAbout) {
  for (const bool asks_of_weights : {true, false}) {
    // The names may have nothing in common: the host repacks matrices of some types, and does not
    // ask about those.
    for (const char* matrix : {"attn_q", "attn_v"}) {
      HostWatch watch;
      HostModel large(watch, 28, "attn_v", asks_of_weights),
          draft(watch, 24, matrix, asks_of_weights);
      const int64_t one = large.make_context();
      const int64_t other = draft.make_context();
      large.decode(one);
      draft.decode(other);
      EXPECT_EQ(watch.num_layers(one), 28) << matrix << asks_of_weights;
      EXPECT_EQ(watch.num_layers(other), 24) << matrix << asks_of_weights;
    }
  }
}

TEST(HostWatch, ContextsOfOneModel) {
  HostWatch watch;
  HostModel model(watch, 5, "attn_q");
  const int64_t one = model.make_context(), other = model.make_context();
  model.decode(one);
  EXPECT_EQ(watch.num_layers(one), 5);
  EXPECT_EQ(watch.num_layers(other), 5);
  watch.freed_context(one);
  EXPECT_EQ(watch.num_layers(model.make_context()), 5);
}

TEST(HostWatch, AModelThatIsLoadedLater) {
  HostWatch watch;
  HostModel small(watch, 2, "attn_q"), large(watch, 7, "attn_q"), strange(watch, 9, "attn_qkv");
  const int64_t context = small.make_context();
  large.load();
  EXPECT_EQ(watch.num_layers(context), 2);
  strange.load();  // by then it has computed
  EXPECT_EQ(watch.num_layers(context), 2);
  EXPECT_EQ(watch.num_layers(strange.make_context()), 9);
}

TEST(HostWatch, AModelThatIsLoadedBeforeAnotherComputes) {
  HostWatch watch;
  HostModel small(watch, 5, "attn_q"), large(watch, 9, "ssm_in");
  const int64_t context = small.make_context();
  large.load();  // not a name in common
  const int64_t other = large.make_context();
  EXPECT_EQ(watch.num_layers(context), 5);
  EXPECT_EQ(watch.num_layers(other), 9);
}

}  // namespace
}  // namespace tsp::ggml_plugin
