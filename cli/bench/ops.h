// SPDX-License-Identifier: MIT
// One op on one workload: its params with their memory and workspace, ready to be called again and
// again, on the host or on a GPU.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "bench/block_lists.h"
#include "bench/workload.h"
#include "cli/device_memory.h"
#include "cli/options.h"
#include "core/prefill_parts.h"

namespace tsp::cli {

class Ops {
 public:
  Ops(const tokensparse::Context& ctx, const bench::Workload& work,
      const tsp_prefill_params_t& choice, const tsp_pattern_t& pattern)
      : ctx_(ctx.get()), on_gpu_(ctx.backend() == "cuda"), shape_(work.shape), choice_(choice) {
    choice_.q = place(work.q, work.q_memory);
    choice_.k = place(work.k, work.k_memory);
    choice_.v = place(work.v, work.v_memory);
    choice_.out = place(work.out, work.out_memory);
    const bench::Shape& s = work.shape;
    sets_.num_sets = static_cast<int32_t>(choice.share == TSP_SHARE_HEAD       ? s.heads
                                          : choice.share == TSP_SHARE_KV_GROUP ? s.kv_heads
                                                                               : 1);
    prepare_score();
    prepare_attend(dense_);
    estimate_.pattern = pattern;
  }

  void dense() { check(tokensparse::Status(tsp_attend(ctx_, &dense_))); }
  void score() { check(tokensparse::Status(tsp_score(ctx_, &score_))); }
  void select() { check(tokensparse::Status(tsp_select(ctx_, &select_))); }
  void sparse() { check(tokensparse::Status(tsp_attend(ctx_, &sparse_))); }
  void estimate() { check(tokensparse::Status(tsp_estimate(ctx_, &estimate_))); }
  /// The rows that are kept, zeros for the others.
  void kept_rows() { check(tokensparse::Status(tsp_attend(ctx_, &kept_rows_))); }
  /// One row on all kept keys: next to nothing but their packing. Host memory only.
  void last_row() { check(tokensparse::Status(tsp_attend(ctx_, &last_row_))); }
  void prefill() { check(tokensparse::Status(tsp_prefill(ctx_, &choice_))); }
  /// What prefill keeps, whatever `when` says, in a call of its own.
  int32_t prefill_kept() {
    prefill();
    prefill_kept_memory_->download();
    return prefill_kept_;
  }
  void by_blocks() { check(tokensparse::Status(tsp_attend(ctx_, &by_blocks_))); }
  const bench::Sets& sets() const { return sets_; }
  const bench::BlockLists* blocks() const { return blocks_ ? &*blocks_ : nullptr; }

  /// Draws block sets of the chosen tokens, or of all of them. Host memory only.
  void draw_blocks(double share, bool chosen) {
    by_blocks_ = chosen ? sparse_ : dense_;
    by_blocks_.blocks = blocks_.emplace(shape_, chosen ? &sets_ : nullptr, share).view();
    give_workspace(tsp_attend_workspace, by_blocks_);
  }

  /// Prefills once; returns the query-key pairs of all heads. Host memory only.
  double count_pairs() {
    int64_t tally[2] = {};
    choice_.tally = tally;
    prefill();
    choice_.tally = nullptr;
    return static_cast<double>(tally[1]);
  }

  /// Estimates once; returns the share of the pairs of blocks that the lists name.
  double name_blocks() {
    tsp_estimate_params_t& p = estimate_;
    const tsp_pattern_t pattern = p.pattern;
    tsp_estimate_params_init(&p, sizeof p);
    p.pattern = pattern;
    p.precision = choice_.precision;
    p.q = choice_.q;
    p.k = choice_.k;
    const int64_t keys = (shape_.tokens + pattern.block - 1) / pattern.block;
    const int64_t queries = (shape_.q_tokens + pattern.block - 1) / pattern.block;
    const int64_t sets = shape_.heads;
    block_lists_.assign(static_cast<size_t>(sets * queries * keys), 0);
    counts_.assign(static_cast<size_t>(sets * queries), 0);
    columns_.assign(static_cast<size_t>(sets * shape_.tokens), 0);
    num_columns_.assign(static_cast<size_t>(sets), 0);
    const auto list = [this](std::vector<int32_t>& host) -> DeviceMemory& {
      return memory(host.data(), host.size() * sizeof(int32_t));
    };
    DeviceMemory& counts = list(counts_);
    p.blocks = {static_cast<int32_t*>(list(block_lists_).data()),
                static_cast<int32_t*>(counts.data()),
                static_cast<int32_t*>(list(columns_).data()),
                static_cast<int32_t*>(list(num_columns_).data()),
                pattern.block,
                static_cast<int32_t>(sets),
                keys,
                queries * keys,
                0,
                queries,
                0,
                shape_.tokens,
                0};
    give_workspace(tsp_estimate_workspace, p);
    estimate();
    counts.download();
    double named = 0, all = 0;
    for (int64_t m = 0; m < queries; ++m) {
      const int64_t last =
          std::min(shape_.tokens - shape_.q_tokens + (m + 1) * pattern.block, shape_.tokens) - 1;
      all += static_cast<double>(sets * (last / pattern.block + 1));
    }
    for (const int32_t count : counts_) named += count;
    return named / all;
  }

  /// Scores and chooses once, so that select, sparse and prefill can run and their work is known.
  void choose() {
    score();
    prepare_select();
    select();
    for (DeviceMemory* list : {indices_, kept_}) list->download();
    sparse_ = dense_;
    sparse_.selected = select_.selected;
    give_workspace(tsp_attend_workspace, sparse_);
    kept_rows_ = last_row_ = sparse_;
    kept_rows_.dropped = last_row_.dropped = TSP_DROPPED_ZERO;
    for (tsp_tensor_t* view : {&last_row_.q, &last_row_.out}) {
      view->data = static_cast<char*>(view->data) +
                   (view->tokens - 1) * view->token_stride * (view->dtype == TSP_F32 ? 4 : 2);
      view->tokens = 1;
    }
    choice_.selected.num_sets = sets_.num_sets;
    prefill_kept_memory_ = &memory(&prefill_kept_, sizeof prefill_kept_);
    choice_.selected.kept = static_cast<int32_t*>(prefill_kept_memory_->data());
    give_workspace(tsp_prefill_workspace, choice_);
  }

 private:
  /// Memory of the context's device, with `host` as its counterpart if that is not null.
  DeviceMemory& memory(void* host, size_t bytes) {
    if (!on_gpu_ && host == nullptr) {  // touched: no sample pays for page faults
      buffers_.emplace_back(bytes);
      host = buffers_.back().data();
    }
    memory_.push_back(std::make_unique<DeviceMemory>(on_gpu_, host, bytes));
    return *memory_.back();
  }
  tsp_tensor_t place(tsp_tensor_t view, const bench::Buffer& buffer) {
    DeviceMemory& there = memory(view.data, buffer.bytes());
    there.upload();
    view.data = there.data();
    return view;
  }

  template <typename Params>
  void give_workspace(tsp_status_t (*query)(tsp_context_t*, const Params*, size_t*),
                      Params& params) {
    size_t bytes = 0;
    check(tokensparse::Status(query(ctx_, &params, &bytes)));
    params.workspace = memory(nullptr, bytes).data();
    params.workspace_bytes = bytes;
  }

  void prepare_attend(tsp_attend_params_t& p) {
    p = attend_part(choice_);
    give_workspace(tsp_attend_workspace, p);
  }

  void prepare_score() {
    score_ = score_part(choice_);
    const int64_t prefix = shape_.prefix(choice_.window);
    tsp_tensor_t& s = score_.scores;
    s = bench::token_major({}, TSP_F32, prefix, shape_.heads, 1);
    s.data = memory(nullptr, static_cast<size_t>(prefix * shape_.heads) * sizeof(float)).data();
    s.token_stride = 1;
    s.head_stride = prefix;
    give_workspace(tsp_score_workspace, score_);
  }

  void prepare_select() {
    select_ = select_part(choice_);
    select_.q_len = static_cast<int32_t>(shape_.q_tokens);
    select_.k_len = static_cast<int32_t>(shape_.tokens);
    select_.scores = score_.scores;
    sets_.indices.resize(static_cast<size_t>(sets_.num_sets * shape_.tokens));
    indices_ = &memory(sets_.indices.data(), sets_.indices.size() * sizeof(int32_t));
    kept_ = &memory(&sets_.kept, sizeof sets_.kept);
    select_.selected.indices = static_cast<int32_t*>(indices_->data());
    select_.selected.kept = static_cast<int32_t*>(kept_->data());
    select_.selected.num_sets = sets_.num_sets;
    select_.selected.set_stride = shape_.tokens;
    give_workspace(tsp_select_workspace, select_);
  }

  tsp_context_t* ctx_;
  bool on_gpu_;
  bench::Shape shape_;
  tsp_prefill_params_t choice_;
  tsp_attend_params_t dense_, sparse_{}, kept_rows_{}, last_row_{}, by_blocks_{};
  tsp_score_params_t score_;
  tsp_select_params_t select_{};
  tsp_estimate_params_t estimate_{};
  std::vector<int32_t> block_lists_, counts_, columns_, num_columns_;
  bench::Sets sets_;
  std::optional<bench::BlockLists> blocks_;
  int32_t prefill_kept_ = 0;
  std::vector<bench::Buffer> buffers_;
  std::vector<std::unique_ptr<DeviceMemory>> memory_;
  DeviceMemory *indices_ = nullptr, *kept_ = nullptr;  // of sets_
  DeviceMemory* prefill_kept_memory_ = nullptr;
};

}  // namespace tsp::cli
