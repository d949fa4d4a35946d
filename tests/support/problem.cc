// SPDX-License-Identifier: MIT
#include "tests/support/problem.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <sstream>
#include <stdexcept>

#include "tests/support/allocations.h"
#include "tests/support/device_blocks.h"

namespace tsp::test {
namespace {

void require(const tokensparse::Status& status) {
  if (!status.ok()) throw std::runtime_error(status.message());
}

std::vector<int32_t> offsets_of(const std::vector<int32_t>& lens) {
  std::vector<int32_t> offsets = {0};
  for (const int32_t len : lens) offsets.push_back(offsets.back() + len);
  return offsets;
}

int32_t num_sets_of(int32_t share, const Shape& shape) {
  return static_cast<int32_t>(share == TSP_SHARE_HEAD       ? shape.num_q_heads
                              : share == TSP_SHARE_KV_GROUP ? shape.num_kv_heads
                                                            : 1);
}

/// Index sets in a backend's memory.
class DeviceSets {
 public:
  DeviceSets(const Backend& backend, const Shape& shape, int32_t num_sets)
      : num_sets_(num_sets),
        stride_(*std::max_element(shape.k_lens.begin(), shape.k_lens.end()) + 3),
        num_seqs_(shape.num_seqs()),
        indices_(backend, static_cast<size_t>(num_seqs_ * num_sets * stride_) * sizeof(int32_t)),
        kept_(backend, static_cast<size_t>(num_seqs_) * sizeof(int32_t)) {}
  tsp_index_sets_t view() const {
    return {indices_.as<int32_t>(), kept_.as<int32_t>(), num_sets_, 0, stride_,
            num_sets_ * stride_};
  }
  void write(const Sets& sets) {
    auto host = indices_.read<int32_t>();
    std::vector<int32_t> kept;
    for (size_t b = 0; b < sets.size(); ++b) {
      kept.push_back(static_cast<int32_t>(sets[b][0].size()));
      for (size_t s = 0; s < sets[b].size(); ++s) {
        std::copy(sets[b][s].begin(), sets[b][s].end(),
                  host.begin() + static_cast<int64_t>(b * sets[b].size() + s) * stride_);
      }
    }
    indices_.write(host);
    kept_.write(kept);
  }
  Sets read() const {
    const auto host = indices_.read<int32_t>();
    const auto kept = kept_.read<int32_t>();
    Sets sets(static_cast<size_t>(num_seqs_));
    for (size_t b = 0; b < sets.size(); ++b) {
      for (int32_t s = 0; s < num_sets_; ++s) {
        const auto first = host.begin() + (static_cast<int64_t>(b) * num_sets_ + s) * stride_;
        sets[b].emplace_back(first, first + kept[b]);
      }
    }
    return sets;
  }

 private:
  int32_t num_sets_;
  int64_t stride_;
  int32_t num_seqs_;
  Bytes indices_, kept_;
};

/// Runs the op, which must not allocate. What a GPU's driver and libraries do is their own
/// business.
template <typename Params, typename Op>
void run_op(const Backend& backend, tokensparse::Context& ctx, const Params& p, Op op) {
  const int64_t before = num_allocations();
  const tokensparse::Status status(op(ctx.get(), &p));
  const int64_t allocated = num_allocations() - before;
  require(status);
  if (allocated != 0 && !backend.is_cuda()) {
    throw std::runtime_error("the op allocated " + std::to_string(allocated) + " times");
  }
  if (backend.memory != nullptr) backend.memory->synchronise();
}

/// Asks for the workspace, brings it, runs the op.
template <typename Params, typename Query, typename Op>
void run_with_workspace(const Backend& backend, tokensparse::Context& ctx, Params& p, Query query,
                        Op op) {
  require(tokensparse::Status(query(ctx.get(), &p, &p.workspace_bytes)));
  const Bytes workspace(backend, p.workspace_bytes);
  p.workspace = workspace.data();
  run_op(backend, ctx, p, op);
}

}  // namespace

std::string Shape::name() const {
  static const char* const layouts[] = {"", " head-major", " padded", " dim-strided", " paged"};
  std::ostringstream text;
  text << "Tq";
  for (const int32_t len : q_lens) text << " " << len;
  text << ", Tk";
  for (const int32_t len : k_lens) text << " " << len;
  text << ", heads " << num_q_heads << "/" << num_kv_heads << ", D " << dim << ", q "
       << dtype_name(q_dtype) << layouts[static_cast<int>(q_layout)] << ", kv "
       << dtype_name(kv_dtype) << layouts[static_cast<int>(kv_layout)] << ", out "
       << dtype_name(out_dtype);
  return text.str();
}

Problem::Problem(const Shape& s)
    : shape(s),
      q(s.q_dtype, s.q_lens, s.num_q_heads, s.dim, s.q_layout),
      k(s.kv_dtype, s.k_lens, s.num_kv_heads, s.dim, s.kv_layout, s.seed),
      v(s.kv_dtype, s.k_lens, s.num_kv_heads, s.dim, s.kv_layout, s.seed + 1),
      q_offsets(offsets_of(s.q_lens)),
      k_offsets(offsets_of(s.k_lens)) {
  q.randomise(s.seed * 3 + 1, s.logit_scale);
  k.randomise(s.seed * 3 + 2);
  v.randomise(s.seed * 3 + 3);
}

tsp_batch_t Problem::batch() const {
  if (shape.num_seqs() == 1 && shape.kv_layout != Layout::kPaged) return {};
  return {q_offsets.data(), k_offsets.data(), shape.num_seqs(), 0};
}

int64_t Problem::prefix_total(int32_t window) const {
  int64_t total = 0;
  for (size_t b = 0; b < shape.q_lens.size(); ++b) {
    total += shape.k_lens[b] - std::min(window, shape.q_lens[b]);
  }
  return total;
}

Tensor Problem::score(const Backend& backend, tokensparse::Context& ctx, const Options& options) {
  Tensor scores(TSP_F32, {static_cast<int32_t>(prefix_total(options.window))}, shape.num_q_heads, 1,
                Layout::kHeadMajor);
  OnDevice dq(backend, q), dk(backend, k), ds(backend, scores);
  tokensparse::ScoreParams p;
  p.window = options.window;
  p.pool = options.pool;
  p.precision = options.precision;
  p.q = dq.view();
  p.k = dk.view();
  p.scores = ds.view();
  p.batch = batch();
  run_with_workspace(backend, ctx, p, tsp_score_workspace, tsp_score);
  ds.sync();
  return scores;
}

Sets Problem::select(const Backend& backend, tokensparse::Context& ctx, Tensor& scores,
                     const Options& options) {
  OnDevice ds(backend, scores);
  DeviceSets sets(backend, shape, num_sets_of(options.share, shape));
  tokensparse::SelectParams p;
  p.window = options.window;
  p.min_tokens = options.min_tokens;
  p.share = options.share;
  p.coverage = options.coverage;
  p.keep = options.keep;
  p.num_kv_heads = static_cast<int32_t>(shape.num_kv_heads);
  p.q_len = shape.q_lens[0];
  p.k_len = shape.k_lens[0];
  p.scores = ds.view();
  p.selected = sets.view();
  p.batch = batch();
  run_with_workspace(backend, ctx, p, tsp_select_workspace, tsp_select);
  return sets.read();
}

AttendResult Problem::attend(const Backend& backend, tokensparse::Context& ctx, const Sets* sets,
                             const Options& options, bool want_lse, const Blocks* blocks) {
  AttendResult r;
  r.out = Tensor(shape.out_dtype, shape.q_lens, shape.num_q_heads, shape.dim, shape.q_layout);
  r.lse = Tensor(TSP_F32, shape.q_lens, shape.num_q_heads, 1, Layout::kHeadMajor);
  OnDevice dq(backend, q), dk(backend, k), dv(backend, v), dout(backend, r.out), dl(backend, r.lse);
  std::optional<DeviceSets> dsets;
  tokensparse::AttendParams p;
  p.dropped = options.dropped;
  p.band = options.band;
  p.sink = options.sink;
  p.precision = options.precision;
  p.q = dq.view();
  p.k = dk.view();
  p.v = dv.view();
  p.out = dout.view();
  if (want_lse) p.lse = dl.view();
  p.batch = batch();
  if (sets != nullptr) {
    dsets.emplace(backend, shape, static_cast<int32_t>((*sets)[0].size()));
    dsets->write(*sets);
    p.selected = dsets->view();
  }
  std::optional<DeviceBlocks> dblocks;
  if (blocks != nullptr) p.blocks = dblocks.emplace(backend, *blocks).view();
  run_with_workspace(backend, ctx, p, tsp_attend_workspace, tsp_attend);
  dout.sync();
  dl.sync();
  if (!r.out.poison_intact()) throw std::runtime_error("attend wrote outside out");
  return r;
}

void set_options(tsp_prefill_params_t& params, const Options& options) {
  params.window = options.window;
  params.pool = options.pool;
  params.min_tokens = options.min_tokens;
  params.share = options.share;
  params.coverage = options.coverage;
  params.keep = options.keep;
  params.dropped = options.dropped;
  params.band = options.band;
  params.sink = options.sink;
  params.precision = options.precision;
  params.when = options.when;
}

AttendResult Problem::prefill(const Backend& backend, tokensparse::Context& ctx,
                              const Options& options, const Sets* given, const Blocks* blocks,
                              const tsp_pattern_t* pattern) {
  AttendResult r;
  r.out = Tensor(shape.out_dtype, shape.q_lens, shape.num_q_heads, shape.dim, shape.q_layout);
  r.lse = Tensor(TSP_F32, shape.q_lens, shape.num_q_heads, 1, Layout::kHeadMajor);
  OnDevice dq(backend, q), dk(backend, k), dv(backend, v), dout(backend, r.out), dl(backend, r.lse);
  DeviceSets sets(backend, shape,
                  given == nullptr ? num_sets_of(options.share, shape)
                                   : static_cast<int32_t>((*given)[0].size()));
  std::optional<DeviceSets> dgiven;
  tokensparse::PrefillParams p;
  set_options(p, options);
  if (given != nullptr) {
    dgiven.emplace(backend, shape, static_cast<int32_t>((*given)[0].size()));
    dgiven->write(*given);
    p.given = dgiven->view();
  }
  std::optional<DeviceBlocks> dblocks;
  if (blocks != nullptr) p.blocks = dblocks.emplace(backend, *blocks).view();
  if (pattern != nullptr) p.pattern = *pattern;
  p.q = dq.view();
  p.k = dk.view();
  p.v = dv.view();
  p.out = dout.view();
  p.lse = dl.view();
  p.selected = sets.view();
  p.batch = batch();
  Bytes tally(backend, 2 * sizeof(int64_t));
  tally.write(std::vector<int64_t>{1000, 2000});
  const bool counted = !backend.is_cuda() || (blocks == nullptr && pattern == nullptr);
  if (counted) p.tally = tally.as<int64_t>();
  run_with_workspace(backend, ctx, p, tsp_prefill_workspace, tsp_prefill);
  dout.sync();
  dl.sync();
  if (p.tally != nullptr) {
    r.tally = tally.read<int64_t>();
    r.tally[0] -= 1000;
    r.tally[1] -= 2000;
  }
  r.sets = sets.read();
  if (!r.out.poison_intact()) throw std::runtime_error("prefill wrote outside out");
  return r;
}

CompressResult Problem::compress(const Backend& backend, tokensparse::Context& ctx,
                                 const Sets& sets) {
  size_t rows = 0;
  for (const auto& sequence : sets) rows = std::max(rows, sequence[0].size() + 2);
  const auto num_sets = static_cast<int32_t>(sets[0].size());
  const int64_t kv_heads = std::max<int64_t>(num_sets, shape.num_kv_heads);
  const std::vector<int32_t> lens(sets.size(), static_cast<int32_t>(rows));
  CompressResult r{Tensor(shape.q_dtype, lens, shape.num_q_heads, shape.dim, Layout::kHeadMajor),
                   Tensor(shape.kv_dtype, lens, kv_heads, shape.dim),
                   Tensor(shape.kv_dtype, lens, kv_heads, shape.dim), static_cast<int32_t>(rows)};
  OnDevice dq(backend, q), dk(backend, k), dv(backend, v);
  OnDevice q_out(backend, r.q), k_out(backend, r.k), v_out(backend, r.v);
  DeviceSets dsets(backend, shape, num_sets);
  dsets.write(sets);
  tokensparse::CompressParams p;
  p.q = dq.view();
  p.k = dk.view();
  p.v = dv.view();
  p.q_out = q_out.view();
  p.k_out = k_out.view();
  p.v_out = v_out.view();
  p.selected = dsets.view();
  p.batch = batch();
  run_op(backend, ctx, p, tsp_compress);
  q_out.sync();
  k_out.sync();
  v_out.sync();
  return r;
}

Tensor Problem::decompress(const Backend& backend, tokensparse::Context& ctx, const Sets& sets,
                           Tensor& in) {
  Tensor out(shape.q_dtype, shape.q_lens, shape.num_q_heads, shape.dim, shape.q_layout);
  OnDevice din(backend, in), dout(backend, out);
  DeviceSets dsets(backend, shape, static_cast<int32_t>(sets[0].size()));
  dsets.write(sets);
  tokensparse::DecompressParams p;
  p.in = din.view();
  p.out = dout.view();
  p.k_len = shape.k_lens[0];
  p.selected = dsets.view();
  p.batch = batch();
  run_op(backend, ctx, p, tsp_decompress);
  dout.sync();
  if (!out.poison_intact()) throw std::runtime_error("decompress wrote outside out");
  return out;
}

Sets Problem::random_sets(int32_t share, float keep, int32_t window, uint32_t seed) const {
  std::mt19937 generator(seed);
  Sets sets(shape.q_lens.size());
  for (size_t b = 0; b < sets.size(); ++b) {
    const int32_t w = std::min(window, shape.q_lens[b]);
    const int32_t prefix = shape.k_lens[b] - w;
    const auto kept = static_cast<size_t>(static_cast<float>(prefix) * keep);
    for (int32_t s = 0; s < num_sets_of(share, shape); ++s) {
      std::vector<int32_t> all(static_cast<size_t>(prefix));
      std::iota(all.begin(), all.end(), 0);
      std::shuffle(all.begin(), all.end(), generator);
      all.resize(kept);
      std::sort(all.begin(), all.end());
      for (int32_t t = prefix; t < shape.k_lens[b]; ++t) all.push_back(t);
      sets[b].push_back(std::move(all));
    }
  }
  return sets;
}

Blocks Problem::random_blocks(const Sets* sets, int32_t share, int32_t block, float density,
                              float columns, uint32_t seed) const {
  std::mt19937 generator(seed);
  const auto chance = [&](float p) { return std::generate_canonical<float, 24>(generator) < p; };
  Blocks blocks{block, {}, {}};
  for (size_t b = 0; b < shape.q_lens.size(); ++b) {
    blocks.rows.emplace_back();
    blocks.columns.emplace_back();
    for (int32_t s = 0; s < num_sets_of(share, shape); ++s) {
      int32_t count = shape.k_lens[b], first = count - shape.q_lens[b];
      if (sets != nullptr) {
        const size_t set = static_cast<size_t>(s) * (*sets)[b].size() /
                           static_cast<size_t>(num_sets_of(share, shape));
        const auto& list = (*sets)[b][set];
        first =
            static_cast<int32_t>(std::lower_bound(list.begin(), list.end(), first) - list.begin());
        count = static_cast<int32_t>(list.size());
      }
      auto& rows = blocks.rows.back().emplace_back();
      for (int32_t begin = first; begin < count; begin += block) {
        const int32_t last = (std::min(begin + block, count) - 1) / block;
        auto& row = rows.emplace_back();
        for (int32_t n = 0; n <= last; ++n) {
          if (n >= begin / block || chance(density)) row.push_back(n);
        }
      }
      auto& list = blocks.columns.back().emplace_back();
      for (int32_t entry = 0; entry < count; ++entry) {
        if (chance(columns)) list.push_back(entry);
      }
    }
  }
  if (columns == 0) blocks.columns.clear();
  return blocks;
}

Roundoff roundoff(const Backend& backend, const Shape& shape, int32_t precision) {
  if (backend.is_cuda()) return {0, shape.q_dtype == TSP_F16 ? 0x1p-11 : 0x1p-8};
  if (backend.backend == TSP_BACKEND_CPU && precision == TSP_PRECISION_BF16)
    return {0x1p-8, 0x1p-8};
  return {0, 0};
}

bool serves(const Backend& backend, const Shape& shape) {
  if (!backend.is_cuda()) return true;
  const auto& lens = shape.q_lens;
  return std::find(lens.begin(), lens.end(), 0) == lens.end() && shape.q_dtype != TSP_F32 &&
         shape.q_dtype == shape.kv_dtype && shape.q_dtype == shape.out_dtype &&
         (shape.dim == 64 || shape.dim == 128) && shape.kv_layout != Layout::kDimStrided &&
         shape.q_layout != Layout::kDimStrided && shape.q_layout != Layout::kPadded &&
         shape.kv_layout != Layout::kPadded;
}

}  // namespace tsp::test
