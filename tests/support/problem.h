// SPDX-License-Identifier: MIT
// One attention problem on one backend: shapes and options in, every op callable, results on the
// host. And the oracle: attention by a pairwise mask in double, written without the library.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tests/support/tensor.h"

namespace tsp::test {

struct Shape {
  std::vector<int32_t> q_lens = {65};  // per sequence
  std::vector<int32_t> k_lens = {65};
  int64_t num_q_heads = 4;
  int64_t num_kv_heads = 2;
  int64_t dim = 64;
  int32_t q_dtype = TSP_F32;
  int32_t kv_dtype = TSP_F32;
  int32_t out_dtype = TSP_F32;
  Layout q_layout = Layout::kTokenMajor;
  Layout kv_layout = Layout::kTokenMajor;
  float logit_scale = 1;  // spread of q
  uint32_t seed = 7;
  std::string name() const;
  int32_t num_seqs() const { return static_cast<int32_t>(q_lens.size()); }
};

/// Sets on the host: sets[b][s] = ascending kept positions.
using Sets = std::vector<std::vector<std::vector<int32_t>>>;

/// Block sets on the host: rows[b][s][m] = ascending key blocks of query block m, columns[b][s] =
/// ascending entries (empty: not given).
struct Blocks {
  int32_t block = 128;
  std::vector<Sets> rows;
  Sets columns;
  auto operator<=>(const Blocks&) const = default;
};

struct Options {
  int32_t window = 128;
  int32_t pool = 7;
  int32_t min_tokens = 1024;
  int32_t share = TSP_SHARE_HEAD;
  float coverage = 0.005f;
  float keep = 0;
  int32_t dropped = TSP_DROPPED_ZERO;
  int32_t band = 256;
  int32_t sink = 0;
  int32_t precision = TSP_PRECISION_F32;
  int32_t when = TSP_WHEN_ALWAYS;
};

/// Of a call.
void set_options(tsp_prefill_params_t& params, const Options& options);

/// The kept rows side by side, `rows` for each sequence.
struct CompressResult {
  Tensor q, k, v;
  int32_t rows;
};

struct AttendResult {
  Tensor out;
  Tensor lse;
  // Of prefill only.
  Sets sets;
  std::vector<int64_t> tally;  // what the call added; empty with blocks or a pattern on CUDA
};

class Problem {
 public:
  explicit Problem(const Shape& shape);

  tsp_batch_t batch() const;
  int64_t prefix_total(int32_t window) const;

  /// Each runs one op of the C ABI; a failed status throws std::runtime_error with its sentence. So
  /// does an allocation within the op.
  Tensor score(const Backend& backend, tokensparse::Context& ctx, const Options& options);
  Sets select(const Backend& backend, tokensparse::Context& ctx, Tensor& scores,
              const Options& options);
  AttendResult attend(const Backend& backend, tokensparse::Context& ctx, const Sets* sets,
                      const Options& options, bool want_lse = true, const Blocks* blocks = nullptr);
  AttendResult prefill(const Backend& backend, tokensparse::Context& ctx, const Options& options,
                       const Sets* given = nullptr, const Blocks* blocks = nullptr,
                       const tsp_pattern_t* pattern = nullptr);

  CompressResult compress(const Backend& backend, tokensparse::Context& ctx, const Sets& sets);
  /// `in` has the same number of rows for each sequence.
  Tensor decompress(const Backend& backend, tokensparse::Context& ctx, const Sets& sets,
                    Tensor& in);

  /// Random sets that always hold the last `window` tokens, as many in each set of a sequence.
  Sets random_sets(int32_t share, float keep, int32_t window, uint32_t seed) const;

  /// Random block sets of the entries of `sets` (null: of positions), whose own number of sets must
  /// divide the blocks': each key block with the chance `density`, those on the diagonal always,
  /// and each entry as a column with the chance `columns`.
  Blocks random_blocks(const Sets* sets, int32_t share, int32_t block, float density, float columns,
                       uint32_t seed) const;

  Shape shape;
  Tensor q, k, v;
  std::vector<int32_t> q_offsets, k_offsets;
};

/// What out and lse must be, with |out - exact| bounded by `bound` for arithmetic of unit roundoff
/// `eps` (accumulation) and `eps_operand` (products; eps for f32, 2^-8 for bf16).
struct Expected {
  std::vector<double> out, out_bound;  // [row, head, d]
  std::vector<double> lse, lse_bound;  // [row, head]
};
Expected oracle_attend(const Problem& problem, const Sets* sets, const Options& options,
                       double eps_operand, double eps_weight, const Blocks* blocks = nullptr);
/// What a plain implementation gives. kLoops: f32 loops over a row's keys, weights and output
/// rounded to the output's dtype. kOperators: an operator after the other, each with a result of
/// that dtype (logits, softmax, products), as torch computes attention without a fused kernel.
enum class Plain { kLoops, kOperators };
std::vector<double> plain_attend(const Problem& problem, const Sets* sets, const Options& options,
                                 const Blocks* blocks, Plain plain);
/// Pooled scores [column, head] and their bounds.
void oracle_score(const Problem& problem, const Options& options, double eps_operand,
                  std::vector<double>* scores, std::vector<double>* bounds);

/// Fails the running test with the first element outside its bound.
void expect_attend(const Expected& expected, const AttendResult& result, const std::string& what);
void expect_score(const std::vector<double>& scores, const std::vector<double>& bounds,
                  const Tensor& result, const std::string& what);

/// Roundoff of products and weights on a backend for a precision and the problem's dtypes.
struct Roundoff {
  double operand, weight;
};
Roundoff roundoff(const Backend& backend, const Shape& shape, int32_t precision);
/// False where the backend refuses the shape by name (CUDA: f32, other head dims, no queries).
bool serves(const Backend& backend, const Shape& shape);

}  // namespace tsp::test
