// SPDX-License-Identifier: MIT
// The look before the choice: its guess beside what select keeps.
#include "dispatch/pilot.h"

#include <limits>

#include "tests/support/op_test.h"

namespace tsp::test {
namespace {

class PilotTest : public OpTest {};

/// Guesses for every sequence that has queries, -1 for the others.
std::vector<int32_t> guesses(tokensparse::Context& ctx, Problem& problem, const Options& options) {
  tsp_prefill_params_t p;
  tsp_prefill_params_init(&p, sizeof p);
  set_options(p, options);
  p.scale = 0.125f;  // of D 64, as dispatch would fill it in
  p.q = problem.q.view();
  p.k = problem.k.view();
  p.batch = problem.batch();
  Workspace<> counted(nullptr);
  const size_t score_bytes = make_pilot(*ctx.get(), p, counted).score_bytes;
  std::vector<float> memory((counted.used() + score_bytes) / sizeof(float) + 64);
  auto* const base =
      reinterpret_cast<float*>(round_up_to(reinterpret_cast<uintptr_t>(memory.data()), 64));
  Workspace<> workspace(base);
  const Pilot pilot = make_pilot(*ctx.get(), p, workspace);
  std::vector<int32_t> found;
  for (int32_t b = 0; b < p.batch.num_seqs; ++b) {
    const Seq seq = seq_at(p.batch, b);
    found.push_back(-1);
    if (seq.q_len == 0) continue;
    EXPECT_EQ(guess_kept(*ctx.get(), p, seq, pilot, base + workspace.used() / sizeof(float),
                         &found.back()),
              TSP_OK);
  }
  return found;
}

TEST_P(PilotTest, GuessesWhatSelectKeeps) {
  if (backend.backend != TSP_BACKEND_CPU) return;
  for (const Layout layout : {Layout::kTokenMajor, Layout::kPadded, Layout::kPaged}) {
    Problem problem({.q_lens = {70, 0, 130, 20},
                     .k_lens = {333, 50, 4001, 20},
                     .kv_layout = layout,
                     .logit_scale = 3});
    for (const float coverage : {1e-6f, 0.02f, 0.1f, 0.4f, 0.9f}) {
      const Options options = {.window = 32, .min_tokens = 40, .coverage = coverage};
      Tensor scores = problem.score(backend, ctx, options);
      const Sets sets = problem.select(backend, ctx, scores, options);
      const std::vector<int32_t> guessed = guesses(ctx, problem, options);
      for (const size_t b : {0, 2}) {
        const auto kept = static_cast<double>(sets[b][0].size());
        EXPECT_NEAR(guessed[b], kept, 0.06 * problem.shape.k_lens[b])
            << "sequence " << b << ", coverage " << coverage;
      }
    }
  }
}

TEST_P(PilotTest, WhatCannotBeRankedIsAllKept) {
  if (backend.backend != TSP_BACKEND_CPU) return;
  Problem problem({.q_lens = {130, 40}, .k_lens = {900, 50}});
  problem.k.set(5, 0, 3, std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(guesses(ctx, problem, {.window = 32, .min_tokens = 40, .coverage = 0.5f}),
            (std::vector<int32_t>{900, 50}));
}

TSP_INSTANTIATE_ON_ALL_BACKENDS(PilotTest);

}  // namespace
}  // namespace tsp::test
